"""The bits of s2 and q8 (docs/FORMAT.md, sections 2 and 3): search, codes, packing, decoding.

Everything works on torch tensors of any device; packed tensors are numpy byte arrays. Run by itself
it compares with the worked example in docs/FORMAT.md:

  python3 s2.py ../docs/FORMAT.md
"""
import re
import sys

import numpy as np
import torch

GROUP, ROWS = 32, 16


def row_scale(d):
    """What the file can hold of a row scale: an f16."""
    return d.half().float()


def value(d, c, z, q):
    """w = d / 8 * ((c + 4) * (8 q - 12 + z - 8)), exact; d (R), c, z (R, G), q (R, G, 32)."""
    eighths = (c + 4)[..., None] * (8 * q - 20 + z[..., None])
    return (d * 0.125)[:, None, None] * eighths


def position(w, d, c, z):
    """Where weights (R, G, 32) lie on the axis of the codes; the nearest of 0..3 is the code."""
    s = d[:, None] * (c + 4)
    return w / s[..., None] - ((z - 20) * 0.125)[..., None]


def codes(w, d, c, z):
    return position(w, d, c, z).clamp(0, 3).round()


@torch.no_grad()
def search(w):
    """d, c and z of the least squared error for weights (R, G, 32): what src/scalar23.c finds."""
    rms = w.pow(2).mean((1, 2)).sqrt()
    best_d, best_c, best_z = None, None, None
    least_row = torch.full_like(rms, float("inf"))
    for trial in (1.0, 0.85, 1.2):
        d = row_scale(rms * (0.95 / 11.5 * trial))
        x = w / d[:, None, None]
        least = torch.full_like(x[..., 0], float("inf"))
        bc, bz = torch.zeros_like(least), torch.zeros_like(least)
        for c in range(16):
            t0 = x / (c + 4) + 2.5
            for z in range(16):
                t = t0 - 0.125 * z
                e = (t - t.clamp(0, 3).round()).pow(2).sum(-1) * (c + 4) ** 2
                better = e < least
                least = torch.where(better, e, least)
                bc, bz = bc.masked_fill(better, c), bz.masked_fill(better, z)
        total = least.sum(1) * d * d
        better = total < least_row
        least_row = torch.where(better, total, least_row)
        if best_d is None:
            best_d, best_c, best_z = d, bc, bz
        else:
            best_d = torch.where(better, d, best_d)
            best_c = torch.where(better[:, None], bc, best_c)
            best_z = torch.where(better[:, None], bz, best_z)
    return best_d, best_c, best_z


def pack_s2(d, c, z, q):
    """The tensor's bytes. d (R), c and z (R, G), q (R, G, 32); R a multiple of 16."""
    r, g, n = q.shape
    assert n == GROUP and r % ROWS == 0 and c.shape == z.shape == (r, g) and d.shape == (r,)
    d, c, z, q = (t.detach().cpu() for t in (d, c, z, q))
    assert torch.equal(row_scale(d), d.float()), "row scales must be f16 numbers"
    for t, top in ((c, 15), (z, 15), (q, 3)):
        assert torch.equal(t, t.round()) and 0 <= t.min() and t.max() <= top
    c, z, q = (t.numpy().astype(np.uint8) for t in (c, z, q))
    head = (c | z << 4).reshape(r // ROWS, ROWS, g).transpose(0, 2, 1)
    q = q.reshape(r // ROWS, ROWS, g, 2, 4, 4)  # block, row, group, h, f, i
    byte = q[..., 0, :] | q[..., 1, :] << 2 | q[..., 2, :] << 4 | q[..., 3, :] << 6
    body = byte.transpose(0, 2, 3, 1, 4).reshape(r // ROWS, g, 128)
    blocks = np.concatenate((head, body), 2)
    return np.concatenate((blocks.reshape(-1), d.numpy().astype("<f2").view(np.uint8)))


def decode_s2(data, rows, cols):
    """Weights (rows, cols) in f32, written after FORMAT.md and not by inverting pack_s2."""
    b, g = (rows + 15) // 16, cols // GROUP
    assert data.size == b * g * 144 + 32 * b
    blocks = data[: b * g * 144].reshape(b, g, 144).astype(np.int32)
    d = data[b * g * 144 :].view("<f2").astype(np.float32)
    w = np.empty((b * 16, cols), np.float32)
    for r in range(16):
        c, z = blocks[:, :, r] & 15, blocks[:, :, r] >> 4
        for k in range(GROUP):
            h, f, i = k // 16, k // 4 % 4, k % 4
            q = blocks[:, :, 16 + 64 * h + 4 * r + i] >> 2 * f & 3
            eighths = (c + 4) * (8 * q - 12 + z - 8)
            w[r::16, k::GROUP] = (d[r::16] * np.float32(0.125))[:, None] * eighths.astype(
                np.float32
            )
    return w[:rows]


def pack_q8(w):
    """Bytes of Q8_0 for weights (rows, cols): the largest weight of 32 gets code 127."""
    x = w.detach().float().cpu().reshape(-1, GROUP)
    d = (x.abs().amax(1) / 127).half()
    inv = torch.where(d > 0, 1 / d.float(), torch.zeros_like(d.float()))
    q = (x * inv[:, None]).round().clamp(-127, 127)
    out = np.empty((x.shape[0], 34), np.uint8)
    out[:, :2] = d.numpy().astype("<f2").view(np.uint8).reshape(-1, 2)
    out[:, 2:] = q.numpy().astype(np.int8).view(np.uint8)
    return out.reshape(-1)


def decode_q8(data, rows, cols):
    b = data.reshape(-1, 34)
    d = np.ascontiguousarray(b[:, :2]).view("<f2").astype(np.float32)
    return (d * np.ascontiguousarray(b[:, 2:]).view(np.int8).astype(np.float32)).reshape(rows, cols)


def check(path):
    """The worked example of section 3.3, bytes and values, through pack_s2, value and decode_s2."""
    text = open(path, encoding="utf-8").read()
    want = np.zeros(176, np.uint8)
    for at, hexes in re.findall(r"^s2 at +(\d+): ([0-9a-f ]+)$", text, re.M):
        want[int(at) : int(at) + 8] = [int(x, 16) for x in hexes.split()]
    rows = [[], []]
    for r, numbers in re.findall(r"^s2 row (\d) input +\d+: (.*)$", text, re.M):
        rows[int(r)] += [float(x) for x in numbers.split()]
    rows = np.array(rows, np.float32)
    assert rows.shape == (2, 32), "the example is not where it was in FORMAT.md"
    q = torch.zeros(16, 1, 32)
    for r in range(2):
        for k in range(32):
            q[r, 0, k] = (3 * k + r + k // 8) % 4
    d, c, z = torch.zeros(16), torch.zeros(16, 1), torch.zeros(16, 1)
    d[:2], c[:2, 0], z[:2, 0] = (
        torch.tensor([0.5, 0.0625]),
        torch.tensor([7.0, 15.0]),
        torch.tensor([11.0, 2.0]),
    )
    assert np.array_equal(pack_s2(d, c, z, q), want), "bytes differ"
    assert np.array_equal(value(d, c, z, q)[:2, 0].numpy(), rows), "values differ"
    assert np.array_equal(decode_s2(want, 2, 32), rows), "decoder differs"
    w = torch.randn(64, 6, 32, generator=torch.Generator().manual_seed(1)) * torch.rand(64, 1, 1)
    d, c, z = search(w)
    v = value(d, c, z, codes(w, d, c, z))
    error = ((v - w).pow(2).sum((1, 2)) / w.pow(2).sum((1, 2))).mean().item()
    assert 0.08 < error < 0.1, error
    packed = pack_s2(d, c, z, codes(w, d, c, z))
    assert np.array_equal(decode_s2(packed, 64, 192), v.reshape(64, 192).numpy())
    return error


if __name__ == "__main__":
    error = check(sys.argv[1])
    print(f"equal to the worked example; Gaussian rows: relative squared error {error:.4f}")
