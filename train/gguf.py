"""Fills a GGUF file made by `dibit quantize` with other tensors of the same types and shapes."""
import struct

SCALAR = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}


class Gguf:
    """A file's header. tensors: name -> (type id, dims, offset, bytes up to the next tensor)."""

    def __init__(self, data):
        self.data, self.at = data, 4
        assert data[:4] == b"GGUF" and self.u32() == 3
        n, keys = self.u64(), self.u64()
        align = 32
        for _ in range(keys):
            key, kind = self.string(), self.u32()
            if key == "general.alignment":
                align = struct.unpack_from("<I", data, self.at)[0]
            self.skip(kind)
        self.keys_end = self.at
        self.tensors = {}
        for _ in range(n):
            name = self.string()
            dims = [self.u64() for _ in range(self.u32())]
            self.tensors[name] = (self.u32(), dims, self.u64())
        self.infos_end, self.align = self.at, align
        start = (self.at + align - 1) // align * align
        ends = sorted(t[2] for t in self.tensors.values()) + [len(data) - start]
        self.tensors = {
            k: (t, d, start + o, ends[ends.index(o) + 1] - o)
            for k, (t, d, o) in self.tensors.items()
        }

    def u32(self):
        self.at += 4
        return struct.unpack_from("<I", self.data, self.at - 4)[0]

    def u64(self):
        self.at += 8
        return struct.unpack_from("<Q", self.data, self.at - 8)[0]

    def string(self):
        n = self.u64()
        self.at += n
        return bytes(self.data[self.at - n : self.at]).decode()

    def skip(self, kind):
        if kind == 8:
            self.string()
        elif kind == 9:
            item, n = self.u32(), self.u64()
            for _ in range(n if item == 8 else 0):
                self.string()
            self.at += 0 if item == 8 else SCALAR[item] * n
        else:
            self.at += SCALAR[kind]


def fill(template, tensors, notes=()):
    """The bytes of `template` with the data of every tensor replaced by tensors[name] (bytes), and
    with notes, (key, text) each, as further metadata."""
    g = Gguf(template)
    assert sorted(g.tensors) == sorted(tensors), set(g.tensors) ^ set(tensors)
    out = bytearray(template)
    for name, (_, _, at, room) in g.tensors.items():
        n = len(tensors[name])
        assert room - 32 < n <= room, f"{name}: {n} bytes for a place of {room}"
        out[at : at + n] = tensors[name]
    pad = lambda n: (n + g.align - 1) // g.align * g.align
    n_tensors, n_keys = struct.unpack_from("<QQ", out, 8)
    head = out[:8] + struct.pack("<QQ", n_tensors, n_keys + len(notes)) + out[24 : g.keys_end]
    for pair in notes:
        key, text = (x.encode() for x in pair)
        head += struct.pack(f"<Q{len(key)}sIQ{len(text)}s", len(key), key, 8, len(text), text)
    head += out[g.keys_end : g.infos_end]
    return bytes(head + bytes(pad(len(head)) - len(head)) + out[pad(g.infos_end) :])
