#!/usr/bin/env python3
"""GGUF files of a real model's shape with random weights, to measure speed where the model itself cannot be brought.

    bench/synthetic_gguf.py header MODEL.gguf HEADER        keep all but the weights (metadata, tokenizer, list of tensors)
    bench/synthetic_gguf.py fill HEADER OUT.gguf            random weights of the same types
    bench/synthetic_gguf.py fill --type BF16 HEADER OUT.gguf    all matrices of one type instead

Values are finite and small, so that nothing overflows on its way through the layers; blocks of a type repeat after some
thousand. Speed does not depend on them, but what such a model says is noise: an answer may end at any token.
"""
import argparse
import struct

import numpy

# name: (number in the file, weights of a block, bytes of a block, places of f16 scales in it)
TYPES = {
    "F32": (0, 1, 4, ()), "F16": (1, 1, 2, ()), "BF16": (30, 1, 2, ()),
    "Q4_0": (2, 32, 18, (0,)), "Q4_1": (3, 32, 20, (0, 2)), "Q5_0": (6, 32, 22, (0,)), "Q5_1": (7, 32, 24, (0, 2)), "Q8_0": (8, 32, 34, (0,)),
    "Q2_K": (10, 256, 84, (80, 82)), "Q3_K": (11, 256, 110, (108,)), "Q4_K": (12, 256, 144, (0, 2)), "Q5_K": (13, 256, 176, (0, 2)),
    "Q6_K": (14, 256, 210, (208,)), "IQ4_NL": (20, 32, 18, (0,)), "IQ4_XS": (23, 256, 136, (0,)),
}
NUMBERS = {row[0]: name for name, row in TYPES.items()}
# The largest weight is about the scale times this.
LARGEST = {"Q4_0": 8, "Q4_1": 16, "Q5_0": 16, "Q5_1": 32, "Q8_0": 128, "Q2_K": 45, "Q3_K": 128, "Q4_K": 945, "Q5_K": 1953, "Q6_K": 4096,
           "IQ4_NL": 127, "IQ4_XS": 4064}
PERIOD = 4099  # blocks (elements / 256 of plain types) after which they repeat


class Reader:
    SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}

    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, form):
        value = struct.unpack_from("<" + form, self.data, self.at)[0]
        self.at += struct.calcsize(form)
        return value

    def string(self):
        length = self.take("Q")
        self.at += length
        return bytes(self.data[self.at - length:self.at]).decode()

    def value(self, kind):
        """Skips a metadata value; returns it if it is a u32."""
        if kind == 8:
            self.string()
        elif kind == 9:
            element, count = self.take("I"), self.take("Q")
            if element in self.SIZES:
                self.at += self.SIZES[element] * count
            else:
                for _ in range(count):
                    self.value(element)
        elif kind == 4:
            return self.take("I")
        else:
            self.at += self.SIZES[kind]
        return None


def parse(data):
    """(bytes before the list of tensors, [(name, dims, type number, offset)], alignment, where the list ends)."""
    reader = Reader(data)
    if bytes(data[:4]) != b"GGUF":
        raise SystemExit("not a GGUF file: the first bytes are not \"GGUF\"")
    reader.at = 8
    n_tensors, n_keys, alignment = reader.take("Q"), reader.take("Q"), 32
    for _ in range(n_keys):
        key = reader.string()
        value = reader.value(reader.take("I"))
        if key == "general.alignment":
            alignment = value
    start, tensors = reader.at, []
    for _ in range(n_tensors):
        name = reader.string()
        dims = [reader.take("Q") for _ in range(reader.take("I"))]
        tensors.append((name, dims, reader.take("I"), reader.take("Q")))
    return bytes(data[:start]), tensors, alignment, reader.at


def blocks(name, type_name, random):
    """PERIOD blocks of a type, as bytes."""
    if type_name == "F32":  # norms and biases: near 1, near 0
        shift = 0.0 if name.endswith("bias") else 1.0
        return (shift + 0.02 * random.standard_normal(PERIOD * 256)).astype("<f4").tobytes()
    if type_name in ("F16", "BF16"):
        values = 0.02 * random.standard_normal(PERIOD * 256)
        if type_name == "F16":
            return values.astype("<f2").tobytes()
        return (values.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()
    _, _, size, scales = TYPES[type_name]
    rows = random.integers(0, 256, (PERIOD, size), dtype=numpy.uint8)
    for place in scales:
        scale = (0.06 / LARGEST[type_name] * random.uniform(0.5, 1.0, PERIOD)).astype("<f2")
        rows[:, place:place + 2] = scale.view(numpy.uint8).reshape(-1, 2)
    return rows.tobytes()


def fill(header, out, type_name, seed):
    with open(header, "rb") as file:
        start, tensors, alignment, _ = parse(memoryview(file.read()))
    random, offset, infos, plan = numpy.random.default_rng(seed), 0, b"", []
    for name, dims, number, _ in tensors:
        own = NUMBERS[number]
        if type_name and len(dims) > 1 and dims[0] % TYPES[type_name][1] == 0:
            own = type_name
        number, width, size, _ = TYPES[own]
        n_bytes = int(numpy.prod(dims)) // width * size
        encoded = name.encode()
        infos += struct.pack("<Q", len(encoded)) + encoded + struct.pack("<I", len(dims)) + b"".join(struct.pack("<Q", d) for d in dims)
        infos += struct.pack("<IQ", number, offset)
        plan.append((name, own, n_bytes))
        offset += -(-n_bytes // alignment) * alignment
    made = {}
    with open(out, "wb") as file:
        file.write(start + infos)
        file.write(bytes(-file.tell() % alignment))
        for name, own, n_bytes in plan:
            key = (own, name.endswith("bias"))
            if key not in made:
                made[key] = blocks(name, own, random)
            whole, rest = divmod(n_bytes, len(made[key]))
            for _ in range(whole):
                file.write(made[key])
            file.write(made[key][:rest])
            file.write(bytes(-n_bytes % alignment))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["header", "fill"])
    parser.add_argument("source")
    parser.add_argument("out")
    parser.add_argument("--type", choices=sorted(TYPES), help="of all matrices whose rows are whole blocks of it")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    if args.what == "fill":
        return fill(args.source, args.out, args.type, args.seed)
    data = numpy.memmap(args.source, dtype=numpy.uint8, mode="r")
    _, _, _, end = parse(memoryview(data))
    with open(args.out, "wb") as file:
        file.write(bytes(data[:end]))
    return None


if __name__ == "__main__":
    main()
