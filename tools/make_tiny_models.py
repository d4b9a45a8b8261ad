#!/usr/bin/env python3
"""Makes testdata/tiny: random llama and qwen2 models with the logits that transformers computes for them.

Each folder holds one model under its Hugging Face names (config.json, model.safetensors, tokenizer.json), the same
model as model.gguf, and what a right implementation must answer: logits.npy for a fixed prompt, greedy tokens, and
token ids of a few strings. Weights are f32 and drawn from numpy's PCG64 with a fixed seed, so a second run with the
same versions makes the same bytes. Dimensions are small but awkward on purpose; see MODELS.

    pip install torch==2.13.0 transformers==5.17.0 gguf==0.19.0
    python tools/make_tiny_models.py --out testdata/tiny
"""

import argparse
import json
import platform
import sys
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import safetensors
import tokenizers
import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

N_GREEDY = 24
# Greedy steps whose two best logits are closer than this could differ between two right f32 implementations.
MIN_GREEDY_MARGIN = 0.01


@dataclass(frozen=True)
class Spec:
    """One model. classic_config: config.json as transformers 4 wrote it (rope_theta, rope_scaling, torch_dtype)
    instead of the rope_parameters and dtype of transformers 5; both are met in published models."""

    name: str
    model_type: str
    seed: int
    tied: bool
    hidden_size: int
    intermediate_size: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_parameters: dict
    max_seq_len: int
    prompt_len: int
    classic_config: bool
    what: str


# original_max_position_embeddings is small so that the 16 frequencies fall into all three branches of the Llama 3
# rule: kept (wavelength < 16), blended, divided by the factor (wavelength > 64).
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}

MODELS = [
    Spec("llama", "llama", seed=29, tied=False, hidden_size=64, intermediate_size=80, n_layers=2, n_heads=4,
         n_kv_heads=2, head_dim=32, rms_norm_eps=1e-5, rope_parameters=LLAMA3_ROPE, max_seq_len=512, prompt_len=40,
         classic_config=True, what="untied head, Llama 3 rope scaling, heads wider than hidden_size / n_heads"),
    Spec("llama_tied", "llama", seed=27, tied=True, hidden_size=72, intermediate_size=88, n_layers=3, n_heads=4,
         n_kv_heads=1, head_dim=16, rms_norm_eps=1e-5, rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
         max_seq_len=256, prompt_len=33, classic_config=False,
         what="tied head, one key/value head, hidden_size 72 (no multiple of 16) is not n_heads * head_dim"),
    Spec("qwen2", "qwen2", seed=13, tied=False, hidden_size=80, intermediate_size=72, n_layers=2, n_heads=5,
         n_kv_heads=1, head_dim=16, rms_norm_eps=1e-6, rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
         max_seq_len=256, prompt_len=24, classic_config=True, what="untied head, q/k/v biases, odd vocabulary"),
    Spec("qwen2_tied", "qwen2", seed=31, tied=True, hidden_size=96, intermediate_size=64, n_layers=2, n_heads=6,
         n_kv_heads=2, head_dim=16, rms_norm_eps=1e-6, rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
         max_seq_len=256, prompt_len=32, classic_config=False, what="tied head, q/k/v biases, odd vocabulary"),
]

# ---- tokenizer: 256 bytes, 56 merges, special tokens ----

# "left+right", one character a byte (latin-1). Merges reach across digits, spaces, newlines and into UTF-8 sequences.
MERGES = [
    " +t", "h+e", " t+he", "i+n", "e+r", " +a", "o+n", "r+e", "a+t", "n+d", "i+s", " +s", "e+n", "o+r", "in+g", " a+nd",
    "e+s", " +w", "i+t", " +o", "l+l", "o+u", " o+f", " +i", " i+s", " t+o", "e+d", " +c", " +m", "h+i", "n+k", "t+hi",
    "thi+nk", " t+hi", " thi+nk", "T+he", "H+e", "He+ll", "Hell+o", " w+or", " wor+l", " worl+d", "\n+\n", " + ",
    "  +  ", "1+2", "12+3", "0+0", "'+s", "(+)", "\xe4+\xbd", "\xe4\xbd+\xa0", "\xe5+\xa5", "\xe5\xa5+\xbd", "\xc3+\xa9",
    "\xe4\xbd\xa0+\xe5\xa5\xbd",
]  # fmt: skip


@dataclass(frozen=True)
class Text:
    """What differs between the two tokenizer families. specials: (token, is hidden when decoding)."""

    gguf_pre: str
    split: str
    specials: list
    bos: str
    eos: str
    pad: str
    add_bos: bool
    ignore_merges: bool
    nfc: bool
    chat_template: str


SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEXTS = {
    "llama": Text(
        gguf_pre="llama-bpe",
        split=SPLIT.replace("DIGITS", r"\p{N}{1,3}"),
        specials=[("<|begin_of_text|>", True), ("<|end_of_text|>", True), ("<|start_header_id|>", True),
                  ("<|end_header_id|>", True), ("<|eot_id|>", True), ("<|pad|>", True), ("<think>", False),
                  ("</think>", False)],
        bos="<|begin_of_text|>", eos="<|eot_id|>", pad="<|pad|>", add_bos=True, ignore_merges=True, nfc=False,
        chat_template=(
            "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
            "{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
            "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
        ),
    ),
    "qwen2": Text(
        gguf_pre="qwen2",
        split=SPLIT.replace("DIGITS", r"\p{N}"),
        specials=[("<|endoftext|>", True), ("<|im_start|>", True), ("<|im_end|>", True), ("<think>", False),
                  ("</think>", False), ("<tool_call>", False), ("</tool_call>", False), ("<|fim_prefix|>", True),
                  ("<|fim_suffix|>", True)],
        bos="<|endoftext|>", eos="<|im_end|>", pad="<|endoftext|>", add_bos=False, ignore_merges=False, nfc=True,
        chat_template=(
            "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
            "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
        ),
    ),
}  # fmt: skip

SAMPLES = [
    "Hello world",
    "The theory of thinking and the other is in there.",
    "  two\n\n\nnewlines\t\ttabs \r\n crlf    end  ",
    "12345 + 1000 = 13345",
    "\u4f60\u597d\uff0c\u4e16\u754c! caf\u00e9 cafe\u0301 \U0001f980",
    "it's <think>HERE</think> we'LL (\"quote\")",
    "",
]


def byte_alphabet() -> dict:
    """The GPT-2 table: byte -> printable character, in the order that numbers the byte tokens."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}


def vocabulary() -> tuple:
    """-> (plain tokens in id order, merges as pairs), both in the byte alphabet. Special tokens come after."""
    alphabet = byte_alphabet()
    tokens, merges = list(alphabet.values()), []
    for merge in MERGES:
        left, right = ("".join(alphabet[b] for b in part.encode("latin-1")) for part in merge.split("+"))
        assert left in tokens and right in tokens and left + right not in tokens, merge
        merges.append((left, right))
        tokens.append(left + right)
    return tokens, merges


def make_tokenizer(text: Text) -> Tokenizer:
    tokens, merges = vocabulary()
    bpe = models.BPE({t: i for i, t in enumerate(tokens)}, merges, ignore_merges=text.ignore_merges)
    tokenizer = Tokenizer(bpe)
    if text.nfc:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(text.split), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    for token, hidden in text.specials:
        added = tokenizers.AddedToken(token, special=hidden, normalized=False)
        tokenizer.add_special_tokens([added]) if hidden else tokenizer.add_tokens([added])
    if text.add_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{text.bos} $A",
            pair=f"{text.bos} $A {text.bos} $B:1",
            special_tokens=[(text.bos, tokenizer.token_to_id(text.bos))],
        )
    else:
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer


def write_tokenizer(folder: Path, spec: Spec, text: Text, tokenizer: Tokenizer) -> None:
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": text.add_bos,
        "bos_token": text.bos,
        "eos_token": text.eos,
        "pad_token": text.pad,
        "model_max_length": spec.max_seq_len,
        "clean_up_tokenization_spaces": False,
        "chat_template": text.chat_template,
    })


# ---- model ----


def make_model(spec: Spec, text: Text, tokenizer: Tokenizer):
    Config, Model = {
        "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
        "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
    }[spec.model_type]
    config = Config(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=spec.hidden_size,
        intermediate_size=spec.intermediate_size,
        num_hidden_layers=spec.n_layers,
        num_attention_heads=spec.n_heads,
        num_key_value_heads=spec.n_kv_heads,
        head_dim=spec.head_dim,
        rms_norm_eps=spec.rms_norm_eps,
        rope_parameters=dict(spec.rope_parameters),
        max_position_embeddings=spec.max_seq_len,
        tie_word_embeddings=spec.tied,
        bos_token_id=tokenizer.token_to_id(text.bos),
        eos_token_id=tokenizer.token_to_id(text.eos),
        pad_token_id=tokenizer.token_to_id(text.pad),
        dtype="float32",
        attn_implementation="eager",
    )
    model = Model(config).eval()
    rng = np.random.default_rng(spec.seed)
    with torch.no_grad():
        for name, param in sorted(model.named_parameters()):  # a tied head is not listed a second time
            param.copy_(torch.from_numpy(random_weight(rng, name, tuple(param.shape))))
    return model


def random_weight(rng: np.random.Generator, name: str, shape: tuple) -> np.ndarray:
    """Large enough that attention is far from uniform and every weight shows in the logits."""
    noise = rng.standard_normal(shape)
    if "norm" in name:
        value = 1 + 0.1 * noise
    elif name.endswith("bias"):
        value = 0.5 * noise
    elif "embed_tokens" in name:
        value = 0.3 * noise
    else:
        value = 1.5 * noise / np.sqrt(shape[1])
    return value.astype(np.float32)


def write_config(folder: Path, spec: Spec) -> None:
    """Puts config.json into a stable key order and, for classic_config, into the form of transformers 4."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    if spec.classic_config:
        rope = config.pop("rope_parameters")
        config["rope_theta"] = rope.pop("rope_theta")
        config["rope_scaling"] = rope if rope["rope_type"] != "default" else None
        config["torch_dtype"] = config.pop("dtype")
    write_json(path, dict(sorted(config.items())))


def reference(spec: Spec, model, bos_id: int) -> tuple:
    """-> (prompt ids, logits [prompt_len, vocab_size] f32, greedy ids, smallest margin of a greedy step).

    Each greedy step runs the whole sequence anew: no cache takes part in the reference. End tokens do not stop it.
    """
    rng = np.random.default_rng(1000 + spec.seed)
    n_plain = 256 + len(MERGES)
    prompt = [bos_id] + [int(t) for t in rng.integers(0, n_plain, spec.prompt_len - 1)]
    with torch.no_grad():
        logits = model(torch.tensor([prompt])).logits[0].numpy()
        sequence, margin = list(prompt), float("inf")
        for _ in range(N_GREEDY):
            best = model(torch.tensor([sequence])).logits[0, -1].topk(2)
            margin = min(margin, float(best.values[0] - best.values[1]))
            sequence.append(int(best.indices[0]))
    return prompt, logits, sequence[len(prompt):], margin


# ---- GGUF ----

GGUF_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name: str) -> str:
    if name in GGUF_NAMES:
        return GGUF_NAMES[name]
    _, _, layer, rest = name.split(".", 3)  # model.layers.N.<part>.weight
    part, kind = rest.rsplit(".", 1)
    return f"blk.{layer}.{GGUF_NAMES[part]}.{kind}"


def pairs_from_halves(weight: np.ndarray, n_heads: int) -> np.ndarray:
    """Reorders the rows of q or k: Hugging Face rotates row i of a head with row i + head_dim / 2, GGUF's llama
    with its neighbour."""
    halves = weight.reshape(n_heads, 2, weight.shape[0] // n_heads // 2, *weight.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(weight.shape))


def llama3_rope_factors(spec: Spec) -> np.ndarray:
    """Divisors of the rope frequencies, [head_dim / 2] f32, as converters store them in rope_freqs.weight.
    The rule is Llama 3.1's: keep short wavelengths, divide long ones by the factor, blend between."""
    rope = spec.rope_parameters
    freqs = rope["rope_theta"] ** -(np.arange(0, spec.head_dim, 2, dtype=np.float64) / spec.head_dim)
    n_turns = rope["original_max_position_embeddings"] * freqs / (2 * np.pi)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    keep = np.clip((n_turns - low) / (high - low), 0, 1)
    return (1 / ((1 - keep) / rope["factor"] + keep)).astype(np.float32)


def write_gguf(path: Path, spec: Spec, text: Text, tokenizer: Tokenizer, model) -> None:
    out = gguf.GGUFWriter(str(path), spec.model_type)
    out.add_type("model")
    out.add_name(f"tiny random {spec.name}")
    out.add_file_type(gguf.LlamaFileType.ALL_F32)
    out.add_vocab_size(tokenizer.get_vocab_size())
    out.add_context_length(spec.max_seq_len)
    out.add_embedding_length(spec.hidden_size)
    out.add_block_count(spec.n_layers)
    out.add_feed_forward_length(spec.intermediate_size)
    out.add_head_count(spec.n_heads)
    out.add_head_count_kv(spec.n_kv_heads)
    out.add_key_length(spec.head_dim)
    out.add_value_length(spec.head_dim)
    out.add_rope_dimension_count(spec.head_dim)
    out.add_rope_freq_base(spec.rope_parameters["rope_theta"])
    out.add_layer_norm_rms_eps(spec.rms_norm_eps)

    tokens, merges = vocabulary()
    types = [gguf.TokenType.NORMAL] * len(tokens)
    for token, hidden in text.specials:
        tokens.append(token)
        types.append(gguf.TokenType.CONTROL if hidden else gguf.TokenType.USER_DEFINED)
    assert [tokenizer.token_to_id(t) for t in tokens] == list(range(len(tokens)))
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre(text.gguf_pre)
    out.add_token_list(tokens)
    out.add_token_types(types)
    out.add_token_merges([f"{left} {right}" for left, right in merges])
    out.add_bos_token_id(tokenizer.token_to_id(text.bos))
    out.add_eos_token_id(tokenizer.token_to_id(text.eos))
    out.add_pad_token_id(tokenizer.token_to_id(text.pad))
    out.add_add_bos_token(text.add_bos)
    out.add_chat_template(text.chat_template)

    if spec.rope_parameters["rope_type"] == "llama3":
        out.add_tensor("rope_freqs.weight", llama3_rope_factors(spec))
    for name, param in sorted(model.named_parameters()):
        weight = param.detach().numpy()
        if spec.model_type == "llama" and ".q_proj." in name:
            weight = pairs_from_halves(weight, spec.n_heads)
        if spec.model_type == "llama" and ".k_proj." in name:
            weight = pairs_from_halves(weight, spec.n_kv_heads)
        out.add_tensor(gguf_name(name), weight)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


# ---- all of it ----


def write_json(path: Path, value: dict) -> None:
    """One line a key."""
    lines = [f" {json.dumps(key)}: {json.dumps(item)}" for key, item in value.items()]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def make_folder(spec: Spec, folder: Path) -> str:
    """Writes one model, reads it back and returns its line for SOURCE.md."""
    folder.mkdir(parents=True, exist_ok=True)
    text = TEXTS[spec.model_type]
    tokenizer = make_tokenizer(text)
    model = make_model(spec, text, tokenizer)
    model.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    write_config(folder, spec)
    write_tokenizer(folder, spec, text, tokenizer)
    write_gguf(folder / "model.gguf", spec, text, tokenizer, model)

    prompt, logits, greedy, margin = reference(spec, model, tokenizer.token_to_id(text.bos))
    if margin < MIN_GREEDY_MARGIN:
        sys.exit(f"{spec.name}: a greedy step has a margin of only {margin:.4f}: choose another seed")
    np.save(folder / "logits.npy", logits)
    write_json(folder / "expect.json", {
        "prompt": prompt,
        "greedy": greedy,
        "greedy_min_margin": round(margin, 4),
        "tokenize": [{
            "text": s,
            "ids": tokenizer.encode(s).ids,
            "ids_no_bos": tokenizer.encode(s, add_special_tokens=False).ids,
        } for s in SAMPLES],
        "chat": chat_sample(folder),
    })

    again = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype="float32")
    with torch.no_grad():
        if not np.array_equal(again.eval()(torch.tensor([prompt])).logits[0].numpy(), logits):
            sys.exit(f"{spec.name}: the written files do not give the same logits")
    n_params = sum(p.numel() for p in model.parameters())
    n_bytes = sum(f.stat().st_size for f in folder.iterdir())
    print(f"{spec.name}: {n_params} parameters, {n_bytes} bytes, logits std {logits.std():.2f}, "
          f"greedy margin {margin:.3f}, {len(set(greedy))} different greedy tokens")
    return (f"| `{spec.name}` | {spec.n_layers} | {spec.hidden_size} | {spec.intermediate_size} | {spec.n_heads}/"
            f"{spec.n_kv_heads} x {spec.head_dim} | {tokenizer.get_vocab_size()} | {spec.prompt_len} | {spec.what} |")


def chat_sample(folder: Path) -> dict:
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    messages = [{"role": "user", "content": "Hello world"}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return {"messages": messages, "prompt": prompt, "ids": tokenizer(prompt, add_special_tokens=False)["input_ids"]}


def versions() -> str:
    modules = [torch, transformers, tokenizers, safetensors, np]
    listed = [f"{m.__name__} {m.__version__}" for m in modules]
    return ", ".join([f"Python {platform.python_version()}", *listed, f"gguf {gguf_version()}"])


def gguf_version() -> str:
    from importlib.metadata import version

    return version("gguf")


SOURCE = """# Tiny random models with reference logits
Made by `python tools/make_tiny_models.py --out testdata/tiny` with {versions}, on a CPU, in f32, eager attention.

| folder | layers | hidden | FFN | heads/kv x head_dim | vocab | prompt | what is special |
| --- | --- | --- | --- | --- | --- | --- | --- |
{rows}

- `config.json`, `generation_config.json`, `model.safetensors`: the model under its Hugging Face names, f32. `llama` and `qwen2` have the
  config.json of transformers 4 (rope_theta, rope_scaling, torch_dtype), the tied ones that of transformers 5 (rope_parameters, dtype).
- `model.gguf`: the same model; q and k rows of the llama ones are reordered as converters do, Llama 3 scaling is in `rope_freqs.weight`.
- `tokenizer.json`, `tokenizer_config.json` (and inside the GGUF): byte-level BPE of 256 bytes, {n_merges} merges and special tokens. `<think>`
  is an added token that decoding shows; the others are hidden. llama: begin token added, `ignore_merges`; qwen2: neither, but NFC.
- `logits.npy`: f32 [prompt, vocab], for `prompt` in `expect.json`, all positions. `greedy`: the next {n_greedy} tokens, end tokens not stopping;
  `greedy_min_margin` is the smallest distance of the two best logits on the way. `tokenize`: strings with their ids; `ids_no_bos`
  without the added begin token. The GGUF carries no normalizer: engines that read only it need not apply NFC.

A right f32 implementation agrees to 3e-5: llama.cpp, an independent one, reads the GGUFs and differs by 8e-6 to 2e-5 (logits have a standard
deviation of 1.5 to 3). Compare logits, not only the best tokens.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("testdata/tiny"), help="output folder (default: %(default)s)")
    parser.add_argument("--only", choices=[s.name for s in MODELS], help="make one model and leave SOURCE.md alone")
    args = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)  # one order of sums on every machine
    print(versions())
    rows = [make_folder(s, args.out / s.name) for s in MODELS if args.only in (None, s.name)]
    if args.only is None:
        source = SOURCE.format(versions=versions(), rows="\n".join(rows), n_merges=len(MERGES), n_greedy=N_GREEDY)
        (args.out / "SOURCE.md").write_text(source)


if __name__ == "__main__":
    main()
