#!/usr/bin/env python3
"""Makes testdata/embeddings: a tiny random BERT in three kinds of files, and what transformers makes of texts.

    python3 tools/make_embedding_goldens.py [FOLDER_OF_ALL_MINILM_L6_V2]

Needs torch, transformers and gguf. With the folder of the real model, minilm.json is made too: the mean of the last
states over the attention mask, divided by its length, as sentence-transformers does for it.
"""
import json
import pathlib
import shutil
import sys
import unicodedata

import gguf
import numpy
import torch
import transformers

OUT = pathlib.Path(__file__).resolve().parent.parent / "testdata" / "embeddings"

TEXTS = [
    "", " ", "a", "Hello, world!", "The quick brown fox jumps over the lazy dog.", "HELLO hello HeLLo",
    "Caf\u00e9 na\u00efve r\u00e9sum\u00e9 \u00c5ngstr\u00f6m \u0130stanbul", "\u4f60\u597d\uff0c\u4e16\u754c\uff01", "\u4e2d\u6587 and English \u6df7\u5408 text",
    "\u6df1\u5ea6\u5b66\u4e60\u6a21\u578b\u7684\u77e5\u8bc6\u84b8\u998f", "\U0001f600 emoji \U0001f468\u200d\U0001f469\u200d\U0001f467 family", "\u3053\u3093\u306b\u3061\u306f\u4e16\u754c", "\uc548\ub155\ud558\uc138\uc694 \uc138\uacc4",
    "\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645", "\u0928\u092e\u0938\u094d\u0924\u0947 \u0926\u0941\u0928\u093f\u092f\u093e", "\u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440! \u0439\u043e\u0433\u0443\u0440\u0442 \u0451\u043b\u043a\u0430", "\u0393\u03b5\u03b9\u03ac \u03c3\u03bf\u03c5 \u039a\u03cc\u03c3\u03bc\u03b5 \u03a3\u038a\u03a3\u03a5\u03a6\u039f\u03a3",
    "tabs\tand\nnew\r\nlines", "zero\u200bwidth\u00adsoft\u0000nul\u0007bell", "nbsp\u00a0em\u2003space", "price: $3.50 + 20% = \u20ac4.20!", "a_b-c.d/e\\f|g~h`i^j",
    "x" * 100, "x" * 101, "y" * 300, "supercalifragilisticexpialidocious antidisestablishmentarianism", "[CLS] [SEP] [MASK] literal", "[cls] lower",
    "def f(x):\n    return x ** 2  # square", "SELECT * FROM t WHERE a = 'b';", "https://example.org/a?b=c&d=e#f", "1234567890 3.14159 1e-7 0xff",
    "\ufb01ne \ufb02ow \u2460 \u00bd \u2122", "e\u0301 combining vs \u00e9", "\ud55c\uad6d\uc5b4 \u1112\u1161\u11ab", "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35\u0e0a\u0e32\u0e27\u0e42\u0e25\u0e01", "\u05e9\u05c1\u05b8\u05dc\u05d5\u05b9\u05dd", "\U00020000\U0002a6d6 rare \uf900",
    "\u201cquotes\u201d \u2014 dash \u2026 ellipsis", "\u300c\u5f15\u53f7\u300d\u3001\u53e5\u53f7\u3002", "\ufffd replacement \ue000 private", "What is the capital of France?", "Paris is the capital of France.",
    "\u6cd5\u56fd\u7684\u9996\u90fd\u662f\u54ea\u91cc\uff1f", "Distillation transfers knowledge from a large model to a small one.", "Das ist \u00fcbrigens schon lange bekannt.", "A", "!?.,;:", "word " * 150, "long text with words " * 120,
    "\u5f88\u957f\u7684\u4e2d\u6587\u6587\u672c\u3002" * 100, "\U0001f1e9\U0001f1ea flags \U0001f3f4\u200d\u2620\ufe0f", "I\u0307 \u0130 \u0131 \u00df \u1e9e \u01c5",
]


def embed(model, tokenizer, texts, limit, pooling="mean"):
    rows = []
    for text in texts:
        batch = tokenizer(text, truncation=True, max_length=limit, padding=False, return_tensors="pt")
        with torch.no_grad():
            states = model(input_ids=batch["input_ids"], token_type_ids=torch.zeros_like(batch["input_ids"])).last_hidden_state[0]
        vector = states.mean(0) if pooling == "mean" else states[0]
        unit = vector / vector.norm().clamp(min=1e-12)
        rows.append((batch["input_ids"][0].tolist(), unit.tolist()))
    return rows


def tiny():
    folder = OUT / "tiny-bert"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    characters = sorted({c for t in TEXTS for c in unicodedata.normalize("NFD", t.lower()) if c.strip() and ord(c) < 0x3100
                         and unicodedata.category(c)[0] in "LNPS"})[:150]
    pieces += characters + ["##" + c for c in "abcdefghijklmnopqrstuvwxyz0123456789"]
    pieces += ["hello", "world", "the", "##ing", "##er", "text", "word", "long", "\u4f60", "\u597d", "\u4e16", "\u754c", "\u4e2d", "\u6587", "fr", "##ance", "capital", "##ital", "cap"]
    pieces = list(dict.fromkeys(pieces))
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8")
    torch.manual_seed(7)
    config = transformers.BertConfig(vocab_size=len(pieces), hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96,
                                     max_position_embeddings=64, hidden_act="gelu")
    model = transformers.BertModel(config, add_pooling_layer=False).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn_like(parameter) * (0.3 if "weight" in name and "LayerNorm" not in name else 0.1)
                            + (1.0 if name.endswith("LayerNorm.weight") else 0.0))
    model = model.to(torch.float16).to(torch.float32)  # so that f16 files hold the same numbers
    transformers.BertTokenizerFast(vocab={t: i for i, t in enumerate(pieces)}, do_lower_case=True).save_pretrained(folder)
    tokenizer = transformers.BertTokenizerFast.from_pretrained(folder)
    model.to(torch.float16).save_pretrained(folder)
    model.to(torch.float32)
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}) + "\n")
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 48}\n')
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8")
    write_gguf(model, pieces, config)
    result = [{"text": t, "ids": ids, "vector": v} for t, (ids, v) in zip(TEXTS, embed(model, tokenizer, TEXTS, 48))]
    cls = embed(model, tokenizer, TEXTS[:6], 64, "cls")
    (OUT / "tiny.json").write_text(dump({"texts": result, "cls": [v for _, v in cls]}))


def write_gguf(model, pieces, config):
    writer = gguf.GGUFWriter(OUT / "tiny-bert-cls.gguf", "bert")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_layer_norm_eps(config.layer_norm_eps)
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.CLS)
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("default")
    writer.add_token_type_count(2)
    def phantom(token):
        if token.startswith("[") and token.endswith("]"):
            return token
        return token[2:] if token.startswith("##") else "\u2581" + token
    writer.add_token_list([phantom(t) for t in pieces])
    writer.add_token_types([3 if t.startswith("[") and t.endswith("]") else 1 for t in pieces])
    writer.add_unk_token_id(1)
    writer.add_sep_token_id(3)
    writer.add_pad_token_id(0)
    writer.add_mask_token_id(4)
    names = {"embeddings.word_embeddings": "token_embd", "embeddings.position_embeddings": "position_embd", "embeddings.token_type_embeddings": "token_types",
             "embeddings.LayerNorm": "token_embd_norm", "attention.self.query": "attn_q", "attention.self.key": "attn_k", "attention.self.value": "attn_v",
             "attention.output.dense": "attn_output", "attention.output.LayerNorm": "attn_output_norm", "intermediate.dense": "ffn_up", "output.dense": "ffn_down",
             "output.LayerNorm": "layer_output_norm"}
    for name, tensor in model.state_dict().items():
        if not name.endswith((".weight", ".bias")):
            continue
        stem, ending = name.rsplit(".", 1)
        layer = ""
        if stem.startswith("encoder.layer."):
            number, stem = stem[len("encoder.layer."):].split(".", 1)
            layer = f"blk.{number}."
        data = tensor.numpy()
        is_matrix = data.ndim == 2 and layer
        writer.add_tensor(f"{layer}{names[stem]}.{ending}", data.astype(numpy.float16 if is_matrix else numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def dump(value):
    def shorten(v):
        if isinstance(v, float):
            return round(v, 7)
        if isinstance(v, list):
            return [shorten(x) for x in v]
        if isinstance(v, dict):
            return {k: shorten(x) for k, x in v.items()}
        return v
    return json.dumps(shorten(value), ensure_ascii=True, separators=(",", ":")) + "\n"


def real(folder):
    model = transformers.BertModel.from_pretrained(folder, add_pooling_layer=False).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.backend_tokenizer.no_padding()
    limit = json.loads((pathlib.Path(folder) / "sentence_bert_config.json").read_text())["max_seq_length"]
    rows = embed(model, tokenizer, TEXTS, limit)
    # The first 32 elements and the number of tokens keep the file small; all elements are compared by their dot product with a fixed vector.
    probe = numpy.cos(numpy.arange(384, dtype=numpy.float64))
    (OUT / "minilm.json").write_text(dump([{"text": t, "ids": ids, "head": v[:32], "probe": float(numpy.dot(v, probe)), "self": float(numpy.dot(v, v))}
                                           for t, (ids, v) in zip(TEXTS, rows)]))


if __name__ == "__main__":
    OUT.mkdir(parents=True, exist_ok=True)
    tiny()
    if len(sys.argv) > 1:
        real(sys.argv[1])
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, gguf; {len(TEXTS)} texts")
