#!/usr/bin/env python3
"""Cuts a real GGUF file down to a header of some kilobytes for tests: all metadata and the whole tensor table, but arrays
of more than N elements are cut to their first N.

    python tools/cut_gguf_header.py MODEL.gguf[.gz] OUT.gguf [N]

The first bytes of the model suffice. Token ids in the metadata stay, so they may point beyond the cut vocabulary.
"""
import gzip
import struct
import sys

SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}


class Reader:
    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, n):
        self.at += n
        return self.data[self.at - n:self.at]

    def number(self, fmt):
        return struct.unpack("<" + fmt, self.take(struct.calcsize(fmt)))[0]

    def string(self):
        """With its length in front."""
        n = self.number("Q")
        return struct.pack("<Q", n) + self.take(n)

    def value(self, kind, limit):
        if kind == 8:
            return self.string()
        if kind != 9:
            return self.take(SIZES[kind])
        inner, n = self.number("I"), self.number("Q")
        parts = [self.value(inner, limit) for _ in range(n)]
        return struct.pack("<IQ", inner, min(n, limit)) + b"".join(parts[:limit])


def main():
    source, target = sys.argv[1:3]
    limit = int(sys.argv[3]) if len(sys.argv) > 3 else 64
    data = (gzip.open if source.endswith(".gz") else open)(source, "rb").read()
    reader = Reader(data)
    out = [reader.take(8)]
    n_tensors, n_entries = reader.number("Q"), reader.number("Q")
    out.append(struct.pack("<QQ", n_tensors, n_entries))
    for _ in range(n_entries):
        out.append(reader.string())
        kind = reader.number("I")
        out.append(struct.pack("<I", kind) + reader.value(kind, limit))
    for _ in range(n_tensors):
        out.append(reader.string())
        n_dims = reader.take(4)
        out.append(n_dims + reader.take(8 * struct.unpack("<I", n_dims)[0] + 12))
    header = b"".join(out)
    with open(target, "wb") as file:
        file.write(header + b"\0" * (-len(header) % 32))


if __name__ == "__main__":
    main()
