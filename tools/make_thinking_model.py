#!/usr/bin/env python3
"""Makes a thinking model of a Qwen2.5 GGUF, for tests where none can be had: two control tokens that the model does not
use become <think> and </think>, and its template begins an answer with <think>. To the model they mean what two words
mean that it knows (their embeddings are copied, for it never learned the tags). Else the weights stay: it thinks in its
own words, and a budget closes the block.

usage: make_thinking_model.py QWEN2_5.gguf OUT.gguf       only the standard library
"""
import shutil
import struct
import sys

from cut_gguf_header import Reader

RENAMED = {"<|box_start|>": "<think>", "<|box_end|>": "</think>"}
MEANINGS = {"<|box_start|>": "Okay", "<|box_end|>": "Answer"}
ROW_BYTES = {0: (1, 4), 1: (1, 2), 3: (32, 20), 8: (32, 34), 12: (256, 144), 13: (256, 176), 14: (256, 210)}  # elements, bytes of a block
BEGIN = "{{- '<|im_start|>assistant\\n' }}"
THINKING = BEGIN + "{%- if enable_thinking is not defined or enable_thinking %}{{- '<think>\\n' }}{%- endif %}"


def text(value):
    return value.encode("utf-8")


def packed(value):
    return struct.pack("<Q", len(value)) + value


def renamed_tokens(value, ids):
    """An array of strings as it lies in the file. ids: gets the places of all words that matter."""
    inner, n = struct.unpack("<IQ", value[:12])
    reader = Reader(value)
    reader.take(12)
    found = 0
    out = [struct.pack("<IQ", inner, n)]
    wanted = set(RENAMED) | set(MEANINGS.values())
    for i in range(n):
        token = reader.string()
        word = token[8:].decode("utf-8", "replace")
        if word in wanted:
            ids[word] = i
        name = RENAMED.get(word)
        found += name is not None
        out.append(token if name is None else packed(text(name)))
    if found != len(RENAMED) or len(ids) != len(wanted):
        sys.exit(f"the vocabulary has not all of {', '.join(sorted(wanted))}: expected a Qwen2.5 model")
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
    ids, embeddings = {}, []
    for _ in range(n_entries):
        key = reader.string()
        kind = reader.number("I")
        value = reader.value(kind, 1 << 40)
        name = key[8:].decode("utf-8")
        if name == "tokenizer.ggml.tokens":
            value = renamed_tokens(value, ids)
        elif name == "tokenizer.chat_template":
            value = thinking_template(value)
        elif name == "general.alignment":
            sys.exit("general.alignment is set: expected the default of 32 bytes")
        out.append(key + struct.pack("<I", kind) + value)
    for _ in range(n_tensors):
        name = reader.string()
        n_dims = reader.take(4)
        rest = reader.take(8 * struct.unpack("<I", n_dims)[0] + 12)
        out.append(name + n_dims + rest)
        if name[8:] in (b"token_embd.weight", b"output.weight"):
            kind, offset = struct.unpack("<IQ", rest[-12:])
            if kind not in ROW_BYTES:
                sys.exit(f"{name[8:].decode()} has type {kind}: expected one of {sorted(ROW_BYTES)}")
            n_elements, n_bytes = ROW_BYTES[kind]
            embeddings.append((offset, struct.unpack("<Q", rest[:8])[0] // n_elements * n_bytes))
    header = b"".join(out)
    with open(source, "rb") as weights, open(target, "wb") as file:
        file.write(header + b"\0" * (-len(header) % 32))
        begin, target_begin = reader.at + (-reader.at % 32), file.tell()
        weights.seek(begin)
        shutil.copyfileobj(weights, file, 1 << 20)
        for offset, row in embeddings:
            for tag, word in MEANINGS.items():
                weights.seek(begin + offset + ids[word] * row)
                file.seek(target_begin + offset + ids[tag] * row)
                file.write(weights.read(row))


if __name__ == "__main__":
    main()
