#!/usr/bin/env python3
"""Makes a thinking model of a Qwen2.5 GGUF, for tests where none can be had: two control tokens that the model does not
use become <think> and </think>, and its template begins an answer with <think>. The weights stay: it thinks in its own
words, and a budget closes the block, for it never learned to.

usage: make_thinking_model.py QWEN2_5.gguf OUT.gguf       only the standard library
"""
import shutil
import struct
import sys

from cut_gguf_header import Reader

RENAMED = {"<|box_start|>": "<think>", "<|box_end|>": "</think>"}
BEGIN = "{{- '<|im_start|>assistant\\n' }}"
THINKING = BEGIN + "{%- if enable_thinking is not defined or enable_thinking %}{{- '<think>\\n' }}{%- endif %}"


def text(value):
    return value.encode("utf-8")


def packed(value):
    return struct.pack("<Q", len(value)) + value


def renamed_tokens(value):
    """An array of strings as it lies in the file."""
    inner, n = struct.unpack("<IQ", value[:12])
    reader = Reader(value)
    reader.take(12)
    found = 0
    out = [struct.pack("<IQ", inner, n)]
    for _ in range(n):
        token = reader.string()
        name = RENAMED.get(token[8:].decode("utf-8", "replace"))
        found += name is not None
        out.append(token if name is None else packed(text(name)))
    if found != len(RENAMED):
        sys.exit(f"the vocabulary has {found} of the tokens {', '.join(RENAMED)}: expected a Qwen2.5 model")
    return b"".join(out)


def thinking_template(value):
    template = value[8:].decode("utf-8")
    if template.count(BEGIN) != 1:
        sys.exit(f"the chat template has {template.count(BEGIN)} times {BEGIN}: expected one")
    return packed(text(template.replace(BEGIN, THINKING)))


def main():
    source, target = sys.argv[1:3]
    with open(source, "rb") as file:
        reader = Reader(file.read(64 << 20))
    out = [reader.take(8)]
    n_tensors, n_entries = reader.number("Q"), reader.number("Q")
    out.append(struct.pack("<QQ", n_tensors, n_entries))
    for _ in range(n_entries):
        key = reader.string()
        kind = reader.number("I")
        value = reader.value(kind, 1 << 40)
        name = key[8:].decode("utf-8")
        if name == "tokenizer.ggml.tokens":
            value = renamed_tokens(value)
        elif name == "tokenizer.chat_template":
            value = thinking_template(value)
        elif name == "general.alignment":
            sys.exit("general.alignment is set: expected the default of 32 bytes")
        out.append(key + struct.pack("<I", kind) + value)
    for _ in range(n_tensors):
        out.append(reader.string())
        n_dims = reader.take(4)
        out.append(n_dims + reader.take(8 * struct.unpack("<I", n_dims)[0] + 12))
    header = b"".join(out)
    with open(source, "rb") as weights, open(target, "wb") as file:
        file.write(header + b"\0" * (-len(header) % 32))
        weights.seek(reader.at + (-reader.at % 32))
        shutil.copyfileobj(weights, file, 1 << 20)


if __name__ == "__main__":
    main()
