"""The base model as a function of its weights: base, control and student share one compiled layer.

Weights of a model: embedding (V, D), norms (2 L + 1, D), and two stacks that hold all matrices by
their number of columns: `a` (rows, D) is q, o, k, v, gate, up, each of all layers, `b` (rows, FF)
is down of all layers. Rows of q and k are in Hugging Face's order.
"""
import json
import struct
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

COMPILE = hasattr(torch, "compile")


def compiled(f):
    lazy = []

    def call(*args):
        if not COMPILE or not args[0].is_cuda:
            return f(*args)
        if not lazy:
            lazy.append(torch.compile(f, dynamic=False))
        return lazy[0](*args)

    return call


@dataclass
class Shape:
    v: int
    d: int
    l: int
    h: int
    kv: int
    hd: int
    ff: int
    theta: float
    eps: float

    @staticmethod
    def read(path):
        c = json.load(open(path))
        assert c["tie_word_embeddings"] and c["model_type"] == "llama"
        s = Shape(
            c["vocab_size"],
            c["hidden_size"],
            c["num_hidden_layers"],
            c["num_attention_heads"],
            c["num_key_value_heads"],
            c["head_dim"],
            c["intermediate_size"],
            c["rope_theta"],
            c["rms_norm_eps"],
        )
        assert s.h * s.hd == s.d, "the stacks need attention as wide as the model"
        return s

    def parts(self):
        """(Hugging Face name, GGUF name, rows, heads GGUF permutes) of stack a, in order."""
        return (
            ("self_attn.q_proj", "attn_q", self.d, self.h),
            ("self_attn.o_proj", "attn_output", self.d, 0),
            ("self_attn.k_proj", "attn_k", self.kv * self.hd, self.kv),
            ("self_attn.v_proj", "attn_v", self.kv * self.hd, 0),
            ("mlp.gate_proj", "ffn_gate", self.ff, 0),
            ("mlp.up_proj", "ffn_up", self.ff, 0),
        )

    def matrices(self):
        """(GGUF name, stack, first row, rows, permuted heads) of every matrix."""
        out, at = [], 0
        for _, name, rows, heads in self.parts():
            for layer in range(self.l):
                out.append((f"blk.{layer}.{name}.weight", "a", at, rows, heads))
                at += rows
        return out + [
            (f"blk.{i}.ffn_down.weight", "b", i * self.d, self.d, 0) for i in range(self.l)
        ]


def rope(x, cos, sin):
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


def norm(x, w, eps):
    y = x.float()
    return (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + eps) * w).to(x.dtype)


def attention(q, k, v):
    if hasattr(F, "scaled_dot_product_attention"):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    s = (q @ k.transpose(-1, -2)).float() / q.shape[-1] ** 0.5
    s = s.masked_fill(torch.ones(s.shape[-2:], dtype=torch.bool).triu(1), float("-inf"))
    return s.softmax(-1).to(v.dtype) @ v


def layer(x, wq, wo, wk, wv, wg, wu, wd, n1, n2, cos, sin, hd, eps):
    n, t, d = x.shape
    y = norm(x, n1, eps)
    q, k, v = ((y @ w.t()).view(n, t, -1, hd).transpose(1, 2) for w in (wq, wk, wv))
    q, k = rope(q, cos, sin), rope(k, cos, sin)
    k, v = (z.repeat_interleave(q.shape[1] // z.shape[1], 1) for z in (k, v))
    x = x + attention(q, k, v).transpose(1, 2).reshape(n, t, d) @ wo.t()
    y = norm(x, n2, eps)
    return x + (F.silu(y @ wg.t()) * (y @ wu.t())) @ wd.t()


layer_fast = compiled(layer)


def logits(shape, emb, norms, a, b, ids, fast=True):
    """Logits (N, T, V) in the type of a and b."""
    s, run = shape, layer_fast if fast else layer
    t = ids.shape[1]
    inv = s.theta ** (-torch.arange(0, s.hd, 2, device=ids.device).float() / s.hd)
    angle = torch.arange(t, device=ids.device).float()[:, None] * inv
    cos, sin = angle.cos().to(a.dtype), angle.sin().to(a.dtype)
    split = torch.split(a, [p[2] * s.l for p in s.parts()])
    mats = [m.view(s.l, -1, s.d).unbind(0) for m in split] + [b.view(s.l, s.d, s.ff).unbind(0)]
    n = norms.unbind(0)
    x = F.embedding(ids, emb).to(a.dtype)
    for i in range(s.l):
        x = run(x, *(m[i] for m in mats), n[2 * i], n[2 * i + 1], cos, sin, s.hd, s.eps)
    return norm(x, n[-1], s.eps) @ emb.to(a.dtype).t()


def read_safetensors(data):
    n = struct.unpack("<Q", data[:8])[0]
    head = json.loads(data[8 : 8 + n])
    out = {}
    for k, t in head.items():
        if k == "__metadata__":
            continue
        assert t["dtype"] == "BF16", k
        i, j = (8 + n + x for x in t["data_offsets"])
        u = np.frombuffer(data[i:j], "<u2").astype(np.uint32) << 16
        out[k] = torch.from_numpy(u.view(np.float32)).view(t["shape"])
    return out


def load_base(shape, data, device):
    """(embedding, norms, a, b) in f32 from the bytes of a safetensors file."""
    st, s = read_safetensors(data), shape
    used = ["model.embed_tokens.weight", "model.norm.weight"]

    def get(i, name):
        used.append(f"model.layers.{i}.{name}.weight")
        return st[used[-1]]

    a = torch.cat([get(i, p[0]) for p in s.parts() for i in range(s.l)])
    b = torch.cat([get(i, "mlp.down_proj") for i in range(s.l)])
    norms = torch.stack(
        [get(i, n) for i in range(s.l) for n in ("input_layernorm", "post_attention_layernorm")]
        + [st["model.norm.weight"]]
    )
    assert sorted(used) == sorted(st), "tensors of the checkpoint that have no place"
    assert a.shape[1] == s.d and b.shape == (s.l * s.d, s.ff) and norms.shape == (2 * s.l + 1, s.d)
    return tuple(t.contiguous().to(device) for t in (st["model.embed_tokens.weight"], norms, a, b))
