"""From trained weights to the bytes of a GGUF file's tensors, and back to check them."""
import glob
import hashlib
import json

import numpy as np
import torch

import gguf
import s2

PART = 15 << 20


def permute_rows(t, heads):
    """Rows of q and k from Hugging Face's half-split order to GGUF's pairs; t (rows, ...)."""
    if not heads:
        return t
    return t.view(heads, 2, -1, *t.shape[1:]).transpose(1, 2).reshape(t.shape)


@torch.no_grad()
def packed(shape, m):
    """GGUF name -> bytes: the student's matrices s2, the control's q8; embedding q8, norms f32."""
    out = {"token_embd.weight": s2.pack_q8(m.emb)}
    f32 = lambda t: t.detach().float().cpu().contiguous().numpy().astype("<f4").view(np.uint8)
    names = [f"blk.{i}.{n}.weight" for i in range(shape.l) for n in ("attn_norm", "ffn_norm")] + [
        "output_norm.weight"
    ]
    out.update({n: f32(t) for n, t in zip(names, m.norms)})
    for name, stack, at, rows, heads in shape.matrices():
        if hasattr(m, "stacks"):
            part = [permute_rows(t[at : at + rows], heads) for t in m.stacks[stack]]
            d, c, z = s2.row_scale(part[1].exp()), part[2].round(), part[3].round()
            out[name] = s2.pack_s2(d, c, z, s2.codes(part[0], d, c, z))
        else:
            out[name] = s2.pack_q8(permute_rows({"a": m.a, "b": m.b}[stack][at : at + rows], heads))
    return out


def unpacked(shape, tensors, kind, device):
    """(embedding, norms, a, b) in f32 from packed()'s bytes; kind is student or control."""
    decode = s2.decode_s2 if kind == "student" else s2.decode_q8
    stacks = {"a": [], "b": []}
    for name, stack, _, rows, heads in shape.matrices():
        w = torch.from_numpy(decode(tensors[name], rows, shape.d if stack == "a" else shape.ff))
        if heads:
            w = w.view(heads, -1, 2, w.shape[1]).transpose(1, 2).reshape(w.shape)
        stacks[stack].append(w)
    emb = torch.from_numpy(s2.decode_q8(tensors["token_embd.weight"], shape.v, shape.d))
    names = [f"blk.{i}.{n}.weight" for i in range(shape.l) for n in ("attn_norm", "ffn_norm")] + [
        "output_norm.weight"
    ]
    norms = torch.stack(
        [torch.from_numpy(tensors[n].view("<f4").astype(np.float32)) for n in names]
    )
    return tuple(t.to(device) for t in (emb, norms, torch.cat(stacks["a"]), torch.cat(stacks["b"])))


def save(tensors, out, name):
    """One blob in parts; returns its index."""
    blob = b"".join(t.tobytes() for t in tensors.values())
    for i in range(0, len(blob), PART):
        open(f"{out}/{name}.{i // PART}", "wb").write(blob[i : i + PART])
    print(f"{name}: {len(blob)} bytes", flush=True)
    return {
        "tensors": [[k, int(t.size)] for k, t in tensors.items()],
        "sha256": hashlib.sha256(blob).hexdigest(),
    }


def fill(o):
    index = json.load(open(f"{o.source}/report.json"))["files"][o.name]
    blob = b"".join(
        open(f"{o.source}/{o.name}.{i}", "rb").read()
        for i in range(len(glob.glob(f"{o.source}/{o.name}.[0-9]*")))
    )
    assert hashlib.sha256(blob).hexdigest() == index["sha256"], "parts are missing or damaged"
    at, tensors = 0, {}
    for name, n in index["tensors"]:
        tensors[name] = blob[at : at + n]
        at += n
    data = gguf.fill(open(o.template, "rb").read(), tensors, [("dibit.train.method", o.method)])
    open(o.out, "wb").write(data)
    print(o.out, len(data), "bytes, sha256", hashlib.sha256(data).hexdigest())
