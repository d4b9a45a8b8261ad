#!/usr/bin/env python3
"""Writes the model of a GGUF file once more with all weights as F32: the same numbers, and no rounding of activations
when it runs. src/engine/reference_test.cc compares with it.

usage: dequantise_gguf.py MODEL.gguf OUT.gguf       needs gguf 0.17 and numpy (PyPI)
"""
import sys

import gguf
import numpy as np


def main():
    source, target = sys.argv[1:3]
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, reader.fields["general.architecture"].contents())
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        kind, value = field.types[0], field.contents()
        if kind == gguf.GGUFValueType.ARRAY:
            writer.add_array(field.name, value)
        elif kind == gguf.GGUFValueType.STRING:
            writer.add_string(field.name, value)
        else:
            writer.add_key_value(field.name, value, kind)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
