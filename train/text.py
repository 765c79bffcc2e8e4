"""The training text: cut into pieces that travel, packed into tokens, drawn in random windows.

Documents are separated by lines that hold only <|endoftext|>.
"""
import bz2
import glob
import os
import time
from multiprocessing import Pool

import numpy as np
import torch

EOT = "<|endoftext|>"


def cut_text(o):
    """The first so many megabytes of each file, whole documents, as pieces NAME-III.bz2 of 6 MB."""
    os.makedirs(o.out, exist_ok=True)
    for item in o.mb.split(","):
        name, mb = item.split("=")
        left, piece, n, total = float(mb) * 1e6, [], 0, 0

        def flush():
            nonlocal piece, n, total
            data = bz2.compress((EOT + "\n").join(piece).encode())
            total += len(data)
            open(f"{o.out}/{name}-{n:03d}.bz2", "wb").write(data)
            piece, n = [], n + 1

        size = 0
        for doc in (
            bz2.open(f"{o.train}/{name}.txt.bz2", "rt", encoding="utf-8").read().split(EOT + "\n")
        ):
            b = len(doc.encode())
            if b > left:
                break
            left, size = left - b, size + b
            piece.append(doc)
            if size > 6e6:
                flush()
                size = 0
        flush()
        print(name, n, "pieces,", total, "bytes", flush=True)


def encode_piece(job):
    path, tokenizer, out = job
    from tokenizers import Tokenizer

    tok = Tokenizer.from_file(tokenizer)
    if path.endswith(".evaltxt"):
        ids = tok.encode(open(path, encoding="utf-8", newline="").read()).ids
        np.array(ids, np.uint16).tofile(out)
        return len(ids)
    docs = [d.strip("\n") for d in bz2.open(path, "rt", encoding="utf-8").read().split(EOT + "\n")]
    eot, n = tok.token_to_id(EOT), 0
    with open(out, "wb") as f:
        for e in tok.encode_batch([d for d in docs if len(d) > 20]):
            n += len(e.ids) + 1
            np.array(e.ids + [eot], np.uint16).tofile(f)
    return n


def pack(o):
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    paths = sorted(glob.glob(f"{o.data}/*.bz2") + glob.glob(f"{o.data}/*.evaltxt"))
    jobs = [
        (p, f"{o.base}/tokenizer.json", p[:-4] + ".bin" if p.endswith("2") else p[:-8] + ".eval")
        for p in paths
    ]
    jobs = [j for j in jobs if not os.path.exists(j[2])]
    start = time.time()
    with Pool(os.cpu_count()) as pool:
        n = pool.map(encode_piece, jobs, 1)
    print(
        f"packed {len(jobs)} pieces, {sum(n) / 1e6:.1f} M tokens, {time.time() - start:.0f} s",
        flush=True,
    )


class Text:
    """Random windows of the packed text; --mix has a factor on a file's share of the tokens."""

    def __init__(self, o, device):
        files = {}
        for f in sorted(glob.glob(f"{o.data}/*.bin")):
            files.setdefault(os.path.basename(f).rsplit("-", 1)[0], []).append(
                np.fromfile(f, np.uint16)
            )
        mix = dict(x.split("=") for x in o.mix.split(",")) if o.mix else {}
        self.tokens = [
            torch.from_numpy(np.concatenate(v).astype(np.int32)).to(device) for v in files.values()
        ]
        share = torch.tensor([len(t) * float(mix.get(n, 1)) for n, t in zip(files, self.tokens)])
        self.p = share / share.sum()
        self.generator = torch.Generator().manual_seed(o.seed)
        self.device = device
        print(
            "text",
            {n: (len(t), round(float(p), 3)) for n, t, p in zip(files, self.tokens, self.p)},
            flush=True,
        )

    def batch(self, n, t):
        rows = []
        for s in torch.multinomial(self.p, n, True, generator=self.generator).tolist():
            at = int(torch.randint(0, len(self.tokens[s]) - t - 1, (1,), generator=self.generator))
            rows.append(self.tokens[s][at : at + t + 1])
        x = torch.stack(rows).long()
        return x[:, :-1], x[:, 1:]
