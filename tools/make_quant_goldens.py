#!/usr/bin/env python3
"""Writes testdata/quant/: rows in every weight format with what the `gguf` package decodes them to.

NAME.decode.bin: 1024 weights as bytes of the format (random bits, finite scales), then 1024 f32.
NAME.encode.bin: 512 f32, then the bytes that ggml's plain rounding gives (formats for which the package has it).

    pip install gguf==0.19.0 numpy && tools/make_quant_goldens.py
"""
import pathlib

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants

# Byte offsets of the f16 fields in a block.
F16_FIELDS = {
    "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "IQ4_NL": [0],
    "Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208], "IQ4_XS": [0],
    "F32": [], "F16": [], "BF16": [],
}
ENCODED = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "BF16", "F16"]


def random_rows(rng, name, n):
    block_size, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[name]]
    rows = rng.integers(0, 256, (n // block_size, block_bytes), dtype=np.uint8)
    if name in ("F16", "BF16"):  # any finite value
        bits = rows.view("<u2")
        infinite = 0x7C00 if name == "F16" else 0x7F80
        bits[(bits & infinite) == infinite] ^= 0x4000
    elif name == "F32":
        rows = rng.standard_normal((n, 1)).astype("<f4").view(np.uint8)
    for i, offset in enumerate(F16_FIELDS[name]):
        values = rng.standard_normal(len(rows)) * (0.01 if i == 0 else 0.1)
        values[0] = 3e-6  # a subnormal f16
        rows[:, offset:offset + 2] = values.astype("<f2").view(np.uint8).reshape(-1, 2)
    return rows.reshape(1, -1)


def main():
    folder = pathlib.Path(__file__).resolve().parent.parent / "testdata" / "quant"
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(20240607)
    for name in F16_FIELDS:
        rows = random_rows(rng, name, 1024)
        values = quants.dequantize(rows, GGMLQuantizationType[name]).astype("<f4")
        (folder / f"{name}.decode.bin").write_bytes(rows.tobytes() + values.tobytes())
    for name in ENCODED:
        values = rng.standard_normal((1, 512)).astype("<f4")
        values[0, 32:64] = 0
        rows = quants.quantize(values, GGMLQuantizationType[name])
        (folder / f"{name}.encode.bin").write_bytes(values.tobytes() + rows.tobytes())


if __name__ == "__main__":
    main()
