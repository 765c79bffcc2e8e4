"""Trains a two-bit model: the base model with s2 in the loop, taught by the base.

Two models start from the base and see the same batches. The control is the base trained on (bf16,
cross entropy on the text). The student holds its matrices as s2 (docs/FORMAT.md, section 3: what
the forward pass multiplies with is what the file decodes to, rounded to bf16 for the products) and
learns the teacher's distribution over the whole vocabulary, KL(teacher || student); the teacher is
the base, or with --teacher control the control as it is at that step.

  python3 distill.py text --train DIR --out D --mb simplewiki=34,...   cut the text into pieces
  python3 distill.py pack --data D --base HF             pieces and *.evaltxt to token files
  python3 distill.py train --data D --base HF --out OUT --seconds S    train, evaluate, pack
  python3 distill.py fill --from OUT --name student --template T.gguf --method TEXT --out M.gguf

T.gguf is a file of the same types and shapes, as `dibit quantize --type s2 --embedding-type q8`
makes it of the base.
"""
import argparse
import glob
import json
import math
import os
import time

import numpy as np
import torch

import export
import model
import s2
import text
from model import compiled


# ---- s2 in the loop ----


def quantize(w, d, c, z):
    """Values and codes. w: latent weights (R, G, 32); d: logs (R); c and z: real numbers (R, G)."""
    d, c, z = s2.row_scale(d.exp()), c.round(), z.round()
    q = s2.codes(w, d, c, z)
    return s2.value(d, c, z, q), q


def quantize_forward(w, d, c, z):
    return quantize(w, d, c, z)[0].to(torch.bfloat16 if w.is_cuda else torch.float32)


def quantize_backward(grad, w, d, c, z):
    """Straight through every rounding; nothing for weights beyond the outer levels."""
    g = grad.float()
    d, c, z = s2.row_scale(d.exp()), c.round(), z.round()
    x = s2.position(w, d, c, z)
    q = x.clamp(0, 3).round()
    inside = (x > -0.5) & (x < 3.5)
    step = d[:, None] * (c + 4)
    level = q + ((z - 20) * 0.125)[..., None]
    by_step = (g * torch.where(inside, q - x, level)).sum(-1)
    by_shift = torch.where(inside, torch.zeros_like(g), g).sum(-1)
    return (
        torch.where(inside, g, torch.zeros_like(g)),
        (by_step * step).sum(1),
        by_step * d[:, None],
        by_shift * step * 0.125,
    )


forward_fast, backward_fast = compiled(quantize_forward), compiled(quantize_backward)


class Quantize(torch.autograd.Function):
    @staticmethod
    def forward(ctx, w, d, c, z):
        ctx.save_for_backward(w, d, c, z)
        return forward_fast(w, d, c, z)

    @staticmethod
    def backward(ctx, grad):
        return backward_fast(grad.contiguous(), *ctx.saved_tensors)


class Student:
    def __init__(self, shape, base):
        self.shape = shape
        emb, norms, a, b = base
        self.emb, self.norms = emb.clone().requires_grad_(), norms.clone().requires_grad_()
        self.stacks = {}
        for name, w in (("a", a), ("b", b)):
            w = w.reshape(len(w), -1, 32).clone()
            d, c, z = s2.search(w)
            self.stacks[name] = [t.contiguous().requires_grad_() for t in (w, d.log(), c, z)]

    def matrices(self):
        return [Quantize.apply(*self.stacks[k]).flatten(1) for k in "ab"]

    @torch.no_grad()
    def exact(self):
        """(embedding, norms, a, b) in f32, matrices as the file decodes."""
        return (
            self.emb,
            self.norms,
            *(quantize(*self.stacks[k])[0].flatten(1) for k in "ab"),
        )

    @torch.no_grad()
    def clamp(self):
        for _, _, c, z in self.stacks.values():
            c.clamp_(0, 15), z.clamp_(0, 15)


class Control:
    def __init__(self, shape, base):
        self.shape = shape
        self.emb, self.norms, self.a, self.b = (t.clone().requires_grad_() for t in base)

    def matrices(self):
        t = torch.bfloat16 if self.a.is_cuda else torch.float32
        return [self.a.to(t), self.b.to(t)]

    def exact(self):
        return self.emb, self.norms, self.a, self.b


# ---- optimizer ----


def orthogonal(g):
    """Newton-Schulz: a batch of matrices with singular values near 1."""
    x = g.to(torch.bfloat16 if g.is_cuda else torch.float32)
    turn = x.shape[-2] > x.shape[-1]
    x = x.mT if turn else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        s = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(s, s, s, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return x.mT if turn else x


class Muon:
    """Momentum made orthogonal, for the stacks of matrices."""

    def __init__(self, shape, a, b, lr, momentum=0.95, decay=0.05):
        s, at, self.parts = shape, 0, []
        for rows in sorted({p[2] for p in s.parts()}, key=[p[2] for p in s.parts()].index):
            n = sum(p[2] == rows for p in s.parts()) * s.l
            self.parts.append((a, at, n, rows, s.d))
            at += n * rows
        assert at == len(a)
        self.parts.append((b, 0, s.l, s.d, s.ff))
        self.m = {id(p): torch.zeros(len(p), p[0].numel(), device=p.device) for p in (a, b)}
        self.lr, self.momentum, self.decay = lr, momentum, decay

    @torch.no_grad()
    def step(self, f):
        for p, at, n, rows, cols in self.parts:
            view = lambda t: t[at : at + n * rows].view(n, rows, cols)
            g, m, lr = view(p.grad), view(self.m[id(p)]), self.lr * f
            m.lerp_(g, 1 - self.momentum)
            u = orthogonal(g.lerp(m, self.momentum))
            view(p.data).mul_(1 - lr * self.decay).add_(
                u.to(p.dtype), alpha=-lr * max(1, rows / cols) ** 0.5
            )


# ---- losses and figures ----


def cross_entropy(t, y):
    """Mean cross entropy of rows of logits and its gradient by them."""
    p = t.float() - t.float().logsumexp(-1, keepdim=True)
    hit = (torch.arange(t.shape[-1], device=t.device) == y[:, None]).float()
    return -(p * hit).sum(-1).mean(), ((p.exp() - hit) / len(y)).to(t.dtype)


def divergence(t, s):
    """Mean KL(t || s) of rows of logits and its gradient by s."""
    lt, ls = (x.float() - x.float().logsumexp(-1, keepdim=True) for x in (t, s))
    return (lt.exp() * (lt - ls)).sum(-1).mean(), ((ls.exp() - lt.exp()) / len(t)).to(s.dtype)


cross_entropy_fast, divergence_fast = compiled(cross_entropy), compiled(divergence)


@torch.no_grad()
def evaluate(shape, base, others, ids, windows=0, length=2048):
    """Figures in f32 of windows as `dibit eval` takes them: BOS and length - 1 tokens."""
    n = len(ids) // length
    ids = ids[: n * length].view(n, length)[: windows or n]
    sums = {k: torch.zeros(4, dtype=torch.float64, device=ids.device) for k in others}
    for y in ids.split(4):
        x = torch.cat((torch.zeros_like(y[:, :1]), y[:, :-1]), 1)
        run = lambda w: model.logits(shape, *w, x, fast=False).flatten(0, 1).log_softmax(-1)
        lb, yy = run(base), y.flatten()
        for k, w in others.items():
            lm = lb if w is base else run(w)
            top = lm.argmax(-1)
            sums[k] += torch.stack(
                [
                    -lm.gather(1, yy[:, None]).double().sum(),
                    (top == yy).double().sum(),
                    (lb.exp() * (lb - lm)).sum(-1).double().sum(),
                    (top == lb.argmax(-1)).double().sum(),
                ]
            )
    out = {}
    for k, s in sums.items():
        nll, hit, kld, agree = (s / ids.numel()).tolist()
        out[k] = {
            "perplexity": round(math.exp(nll), 3),
            "accuracy": round(100 * hit, 3),
            "kld": round(kld, 5),
            "agreement": round(100 * agree, 3),
            "positions": ids.numel(),
        }
    for k in out:
        for against in ("base", "control"):
            if against in out and k not in (against, "base"):
                loss = 100 * (1 - out[k]["accuracy"] / out[against]["accuracy"])
                out[k][f"degradation to {against}"] = round(loss, 3)
    return out


def show(name, figures):
    for k, v in figures.items():
        print(f"{name:>12} {k:8}", *(f"{a} {b}" for a, b in v.items()), flush=True)


# ---- training ----


class Run:
    """Control and student with their optimizers."""

    def __init__(self, o, shape, base):
        self.o, self.shape, self.base = o, shape, base
        self.control, self.student = Control(shape, base), Student(shape, base)
        c, s = self.control, self.student
        self.muons = [
            Muon(shape, c.a, c.b, o.control_lr),
            Muon(shape, s.stacks["a"][0], s.stacks["b"][0], o.lr),
        ]
        fused = {"fused": True} if c.a.is_cuda else {}
        adam = lambda groups: torch.optim.AdamW(
            groups, betas=(0.9, 0.95), weight_decay=0.0, **fused
        )
        self.adams = [
            adam([{"params": [c.emb, c.norms], "base_lr": o.control_lr * o.adam_lr}]),
            adam(
                [
                    {"params": [s.emb, s.norms], "base_lr": o.lr * o.adam_lr},
                    {"params": [s.stacks[k][1] for k in "ab"], "base_lr": o.scale_lr * 0.08},
                    {
                        "params": [s.stacks[k][i] for k in "ab" for i in (2, 3)],
                        "base_lr": o.scale_lr,
                    },
                ]
            ),
        ]

    def step(self, x, y, f):
        o, c, s = self.o, self.control, self.student
        out = 0
        for xx, yy in zip(x.split(o.micro), y.split(o.micro)):
            t = model.logits(self.shape, c.emb, c.norms, *c.matrices(), xx)
            v = model.logits(self.shape, s.emb, s.norms, *s.matrices(), xx)
            ce, dt = cross_entropy_fast(t.detach().flatten(0, 1), yy.flatten())
            teacher = t.detach() if o.teacher == "control" else self.base_logits(xx)
            kl, dv = divergence_fast(teacher.flatten(0, 1), v.detach().flatten(0, 1))
            torch.autograd.backward([t, v], [dt.view_as(t), dv.view_as(v)])
            out = out + torch.stack([ce, kl]) * (len(xx) / len(x))
        scale = len(x) // o.micro
        for adam in self.adams:
            for g in adam.param_groups:
                g["lr"] = g["base_lr"] * f
                for p in g["params"] if scale > 1 else ():
                    p.grad /= scale
            adam.step()
        for m in self.muons:
            m.step(f)
        s.clamp()
        for w in (c.emb, c.norms, c.a, c.b, s.emb, s.norms, *s.stacks["a"], *s.stacks["b"]):
            w.grad = None
        return out

    @torch.no_grad()
    def base_logits(self, x):
        emb, norms, a, b = self.base
        half = self.control.matrices()[0].dtype
        return model.logits(self.shape, emb, norms, a.to(half), b.to(half), x)

    def train(self, source, seconds, valid, deadline=None):
        """Linear decay to 0 over `seconds` after 20 steps of warm-up, which also compile."""
        o, cuda, log, start, step = self.o, self.base[0].is_cuda, [], None, 0
        done = lambda: 0 if start is None else (time.time() - start) / seconds
        begin, evals = time.time(), [0.25, 0.5, 0.75]
        while done() < 1 and not (deadline and time.time() > deadline):
            x, y = source.batch(o.batch, o.context)
            f = max(0.005, 1 - done()) * min(1, (step + 1) / 20)
            log.append(self.step(x, y, f))
            step += 1
            if step == 5:
                torch.cuda.synchronize() if cuda else None
                start = time.time()
                print(f"first 5 steps {start - begin:.1f} s", flush=True)
            if step % o.report == 0:
                ce, kl = torch.stack(log).mean(0).tolist()
                assert math.isfinite(ce) and math.isfinite(kl)
                rate = (step - 5) * o.batch * o.context / (time.time() - start) / 1e6
                print(
                    f"step {step} at {done():.3f} control {ce:.4f} KL {kl:.4f} {rate:.3f} Mtok/s",
                    flush=True,
                )
                log = []
                if evals and done() > evals[0] and o.report_valid:
                    evals.pop(0)
                    show(f"at {done():.2f}", self.figures(valid, o.report_valid))
        print(f"{step} steps, {step * o.batch * o.context / 1e6:.1f} M tokens", flush=True)
        return step

    def figures(self, ids, windows):
        return evaluate(
            self.shape,
            self.base,
            {"control": self.control.exact(), "student": self.student.exact()},
            ids,
            windows,
        )


def apply_trial(o, trial):
    for pair in trial.split(",") if trial else ():
        key, v = pair.split("=")
        setattr(o, key, type(getattr(o, key))(v))


def pack_models(o, shape, run, device):
    """Saves both models; returns their indexes and what their files decode to."""
    files, models = {}, {}
    for name, m in (("control", run.control), ("student", run.student)):
        tensors = export.packed(shape, m)
        files[name] = export.save(tensors, o.out, name)
        models[name] = export.unpacked(shape, tensors, name, device)
    in_loop = run.student.exact()[1:]
    same = all(torch.equal(x, y) for x, y in zip(models["student"][1:], in_loop))
    assert same, "the file does not decode to the values of the loop"
    return files, models


def train(o):
    begin = time.time()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(o.seed)
    shape = model.Shape.read(f"{o.base}/config.json")
    base = model.load_base(shape, open(f"{o.base}/model.safetensors", "rb").read(), device)
    source = text.Text(o, device)
    ids = {}
    for f in sorted(glob.glob(f"{o.data}/*.eval")):
        tokens = torch.from_numpy(np.fromfile(f, np.uint16).astype(np.int64))
        ids[os.path.basename(f)[:-5]] = tokens.to(device)
    os.makedirs(o.out, exist_ok=True)
    print(f"torch {torch.__version__}, {device}, loaded in {time.time() - begin:.0f} s", flush=True)
    for k, trial in enumerate(o.trial or [""]):
        apply_trial(o, trial)
        source.generator.manual_seed(o.seed)
        run = Run(o, shape, base)
        if k == 0:
            show("start", run.figures(ids["valid"], o.report_valid))
        deadline = begin + o.deadline if o.deadline else None
        steps = run.train(source, o.seconds, ids["valid"], deadline)
        show(f"[{trial}]", run.figures(ids["valid"], o.report_valid))
    print(f"trained at {time.time() - begin:.0f} s", flush=True)
    files, models = pack_models(o, shape, run, device)
    skip = ("out", "data", "base", "command")
    report = {"options": {k: v for k, v in vars(o).items() if k not in skip}}
    report.update(steps=steps, files=files)
    for name, t in ids.items():
        report[name] = evaluate(shape, base, {"base": base, **models}, t, o.final_windows)
        show(name, report[name])
    json.dump(report, open(f"{o.out}/report.json", "w"), indent=1)
    print(f"done at {time.time() - begin:.0f} s", flush=True)


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    sub = p.add_subparsers(dest="command", required=True)
    for command, names in (
        ("text", "train out mb"),
        ("pack", "data base"),
        ("fill", "from name template method out"),
        ("train", "data base out"),
    ):
        q = sub.add_parser(command)
        for name in names.split():
            dest = "source" if name == "from" else name
            q.add_argument("--" + name, dest=dest, required=True)
    for name, value, what in (
        ("seconds", 475.0, "of training; the learning rate falls to 0 over them"),
        ("deadline", 0.0, "end training so many seconds after the start at the latest"),
        ("teacher", "base", "base or control"),
        ("mix", "", "NAME=FACTOR,...: times a text's share of the tokens"),
        ("batch", 32, "windows of a step"),
        ("micro", 32, "windows at a time"),
        ("context", 2048, "tokens of a window"),
        ("seed", 1, "of the windows drawn"),
        ("lr", 0.006, "of the student's matrices (Muon)"),
        ("control-lr", 0.005, "of the control's"),
        ("adam-lr", 0.3, "of embedding and norms (AdamW), times the matrices'"),
        ("scale-lr", 0.03, "of c and z (AdamW), in their units; of log d, times 0.08"),
        ("report", 200, "steps between lines"),
        ("report-valid", 24, "windows of valid.eval during the run"),
        ("final-windows", 0, "windows of each text at the end; 0: all"),
    ):
        help = f"{what} (default: {value})" if value != "" else what
        q.add_argument("--" + name, type=type(value), default=value, help=help)
    q.add_argument("--trial", action="append", help="KEY=VALUE,...: a run each, the last is saved")
    o = p.parse_args()
    {"text": text.cut_text, "pack": text.pack, "train": train, "fill": export.fill}[o.command](o)


if __name__ == "__main__":
    main()
