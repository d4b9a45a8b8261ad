#!/usr/bin/env python3
"""Seeds for the fuzz targets of src/files: small GGUF and safetensors files that reach every branch of the readers.

    python tools/make_fuzz_corpus_files.py fuzz/corpus

Needs numpy, gguf (0.19) and safetensors (0.8). The fuzzers add what they find beside these.
"""
import json
import struct
import sys
from pathlib import Path

import numpy as np


def gguf_bytes(entries, tensors, version=3, alignment=32, data=True, magic=b"GGUF"):
    """entries: (key, type number, packed value); tensors: (name, ne, type number, n_bytes)."""
    string = lambda s: struct.pack("<Q", len(s.encode())) + s.encode()
    out = magic + struct.pack("<IQQ", version, len(tensors), len(entries))
    for key, kind, value in entries:
        out += string(key) + struct.pack("<I", kind) + value
    offset = 0
    for name, ne, kind, n_bytes in tensors:
        out += string(name) + struct.pack("<I", len(ne)) + b"".join(struct.pack("<Q", n) for n in ne)
        out += struct.pack("<IQ", kind, offset)
        offset += (n_bytes + alignment - 1) // alignment * alignment
    out += b"\0" * (-len(out) % alignment)
    return out + (bytes(i * 7 & 255 for i in range(offset)) if data else b"")


def s(text):
    return struct.pack("<Q", len(text.encode())) + text.encode()


def strings(values):
    return struct.pack("<IQ", 8, len(values)) + b"".join(s(v) for v in values)


def numbers(kind, fmt, values):
    return struct.pack("<IQ", kind, len(values)) + struct.pack(f"<{len(values)}{fmt}", *values)


def u32(n):
    return struct.pack("<I", n)


def f32(x):
    return struct.pack("<f", x)


def common(arch, **keys):
    base = {"block_count": 1, "embedding_length": 8, "feed_forward_length": 16, "context_length": 64,
            "attention.head_count": 2, "attention.head_count_kv": 1}
    base.update(keys)
    out = [("general.architecture", 8, s(arch))]
    for key, value in base.items():
        if isinstance(value, str):
            out.append((f"{arch}.{key}", 8, s(value)))
        elif isinstance(value, bool):
            out.append((f"{arch}.{key}", 7, struct.pack("<B", value)))
        elif isinstance(value, float):
            out.append((f"{arch}.{key}", 6, f32(value)))
        else:
            out.append((f"{arch}.{key}", 4, u32(value)))
    return out


TOKENIZER = [
    ("tokenizer.ggml.model", 8, s("gpt2")),
    ("tokenizer.ggml.pre", 8, s("qwen2")),
    ("tokenizer.ggml.tokens", 9, strings(["a", "b", "ab", "<eos>"])),
    ("tokenizer.ggml.token_type", 9, numbers(5, "i", [1, 1, 1, 3])),
    ("tokenizer.ggml.merges", 9, strings(["a b"])),
    ("tokenizer.ggml.scores", 9, numbers(6, "f", [0, 0, 1, 0])),
    ("tokenizer.ggml.bos_token_id", 4, u32(3)),
    ("tokenizer.ggml.eos_token_id", 4, u32(3)),
    ("tokenizer.ggml.padding_token_id", 4, u32(0xFFFFFFFF)),
    ("tokenizer.ggml.add_bos_token", 7, b"\0"),
    ("tokenizer.chat_template", 8, s("{{ messages }}")),
    ("tokenizer.chat_template.tool_use", 8, s("{{ tools }}")),
]


def gguf_seeds():
    llama = common("llama", **{"rope.freq_base": 10000.0, "rope.dimension_count": 4,
                               "attention.layer_norm_rms_epsilon": 1e-5, "rope.scaling.type": "linear",
                               "rope.scaling.factor": 2.0})
    tensors = [("token_embd.weight", [8, 4], 0, 128), ("blk.0.attn_q.weight", [8, 8], 1, 128),
               ("blk.0.attn_k.weight", [8, 4], 30, 64), ("rope_freqs.weight", [2], 0, 8),
               ("output_norm.weight", [8], 0, 32)]
    yield "llama_v3", gguf_bytes(llama + TOKENIZER, tensors)
    yield "llama_v2_header_only", gguf_bytes(llama, tensors, version=2, data=False)
    yield "llama_aligned_64", gguf_bytes(llama + [("general.alignment", 4, u32(64))], tensors, alignment=64)
    quantized = [("token_embd.weight", [256, 2], 12, 288), ("output.weight", [32, 1, 1, 2], 2, 36),
                 ("scalar", [], 0, 4), ("empty", [0], 0, 0), ("blk.0.attn_q.bias", [8], 0, 32)]
    yield "qwen2_quantized", gguf_bytes(common("qwen2"), quantized)
    deepseek = common("deepseek2", **{
        "attention.q_lora_rank": 4, "attention.kv_lora_rank": 4, "attention.key_length": 8, "attention.value_length": 4,
        "attention.key_length_mla": 6, "attention.value_length_mla": 4, "leading_dense_block_count": 0,
        "expert_count": 4, "expert_used_count": 2, "expert_shared_count": 1, "expert_feed_forward_length": 8,
        "expert_weights_scale": 2.5, "expert_weights_norm": True, "expert_gating_func": 2, "rope.dimension_count": 2,
        "rope.scaling.type": "yarn", "rope.scaling.factor": 40.0, "rope.scaling.original_context_length": 4096,
        "rope.scaling.yarn_log_multiplier": 0.1, "vocab_size": 4})
    experts = [("blk.0.ffn_gate_exps.weight", [8, 8, 4], 0, 1024), ("blk.0.exp_probs_b.bias", [4], 0, 16),
               ("blk.0.attn_k_b.weight", [4, 4, 2], 0, 128)]
    yield "deepseek2", gguf_bytes(deepseek, experts)
    kinds = [("u8", 0, b"\x08"), ("i8", 1, b"\xff"), ("u16", 2, b"\1\2"), ("i16", 3, b"\xff\xff"), ("u32", 4, u32(7)),
             ("i32", 5, u32(7)), ("f32", 6, f32(0.1)), ("bool", 7, b"\1"), ("string", 8, s("x")),
             ("u64", 10, struct.pack("<Q", 2**63)), ("i64", 11, struct.pack("<q", -1)), ("f64", 12, struct.pack("<d", .1)),
             ("nested", 9, struct.pack("<IQ", 9, 2) + numbers(0, "B", [1, 2]) + strings(["p", ""]))]
    yield "all_kinds", gguf_bytes(kinds, [])
    yield "split", gguf_bytes(llama + [("split.no", 2, b"\0\0"), ("split.count", 2, b"\2\0"),
                                       ("split.tensors.count", 5, u32(9))], [])
    yield "removed_type", gguf_bytes(llama, [("token_embd.weight", [32], 31, 18)])
    yield "big_endian", b"GGUF" + struct.pack(">IQQ", 3, 0, 0)


def safetensors_bytes(header, data):
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def safetensors_seeds():
    from safetensors.numpy import save
    yield "numpy", save({"a": np.zeros((2, 3), np.float32), "b": np.ones(5, np.int8), "c": np.array(1.5)},
                        metadata={"format": "pt"})
    yield "small_floats", safetensors_bytes(
        {"w": {"dtype": "F8_E4M3", "shape": [4, 4], "data_offsets": [0, 16]},
         "s": {"dtype": "F4", "shape": [8], "data_offsets": [16, 20]},
         "t": {"dtype": "BF16", "shape": [0, 3], "data_offsets": [20, 20]}}, bytes(20))
    yield "empty", safetensors_bytes({}, b"")
    yield "hole", safetensors_bytes({"a": {"dtype": "U8", "shape": [1], "data_offsets": [1, 2]}}, bytes(2))
    yield "index", json.dumps({"metadata": {"total_size": 8}, "weight_map": {
        "a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}).encode()


def config_seeds():
    yield "templates", json.dumps({"chat_template": [{"name": "default", "template": "{{ x }}"},
                                                     {"name": "tool_use", "template": "y"}]}).encode()
    yield "text_config", json.dumps({"text_config": {"model_type": "qwen2", "rope_parameters": {
        "rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0}}}).encode()


def main():
    out = Path(sys.argv[1])
    for folder, seeds in (("gguf", gguf_seeds()), ("safetensors", safetensors_seeds()), ("config_json", config_seeds())):
        (out / folder).mkdir(parents=True, exist_ok=True)
        for name, data in seeds:
            (out / folder / name).write_bytes(data)


if __name__ == "__main__":
    main()
