#!/usr/bin/env python3
"""A short mixed load on tiny models: answers are those that each request gets alone, whatever runs beside it: streams,
schemas, embeddings, clients that leave, steering, broken requests, models that come and go.

For sanitizers, too: STILL is then the sanitized program. bench/serve.py has the long run with real models.
usage: load_test.py STILL [SECONDS] [THREADS]      SEED in the environment
"""
import http.client
import json
import os
import random
import sys
import threading
import time

import still_server

MODELS = {"one": still_server.TINY / "qwen2" / "model.gguf", "two": still_server.TINY / "llama" / "model.gguf"}
SCHEMA = {"type": "object", "properties": {"a": {"enum": ["x", "yy"]}, "b": {"type": "boolean"}}, "required": ["a", "b"], "additionalProperties": False}


def chat(model, seed, **more):
    return {"model": model, "messages": [{"role": "user", "content": f"Tell me of the sea {seed}"}], "max_tokens": 24, "seed": seed} | more


def variants(model, seed):
    """(path, body) of requests whose text depends on nothing but themselves."""
    ollama = {"model": model, "messages": [{"role": "user", "content": "Hi"}], "options": {"num_predict": 12, "seed": seed}}
    return [
        ("/v1/chat/completions", chat(model, seed)),
        ("/v1/chat/completions", chat(model, seed, stream=True, n=2)),
        ("/v1/chat/completions", chat(model, seed, enable_thinking=True, thinking_budget=5)),
        ("/v1/chat/completions", chat(model, seed, max_tokens=60, response_format={"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA}})),
        ("/v1/completions", {"model": model, "prompt": [f"sea {seed}", [1, 2, 3]], "max_tokens": 9, "seed": seed, "logprobs": 1, "echo": True}),
        ("/api/chat", ollama),
        ("/api/chat", ollama | {"stream": False, "format": SCHEMA}),
        ("/v1/embeddings", {"model": model, "input": [f"sea {seed}", "x"]}),
        ("/v1/messages", {"model": model, "max_tokens": 9, "messages": [{"role": "user", "content": f"sea {seed}"}], "temperature": 0}),
        ("/tokenize", {"model": model, "prompt": f"sea {seed}"}),
    ]


BROKEN = [("/v1/chat/completions", b"{"), ("/api/chat", b'{"model": "nosuch", "messages": [{"role": "user", "content": "x"}]}'),
          ("/v1/chat/completions", json.dumps(chat("one", 1, temperature=-1)).encode()), ("/v1/completions", b'{"model": "one", "prompt": [1, 99999999]}'),
          ("/api/generate", b'{"model": "two", "prompt": "' + b"x " * 20000 + b'", "truncate": false}'), ("/nothing", b"x"),
          ("/v1/chat/completions", json.dumps(chat("two", 1, guided_regex="[z-a]")).encode())]


def text_of(answer):
    """What must be equal: no ids, times and counts of the cache."""
    drop = {"id", "created", "created_at", "total_duration", "load_duration", "prompt_eval_duration", "eval_duration", "system_fingerprint", "usage"}

    def strip(value):
        if isinstance(value, dict):
            return {k: strip(v) for k, v in value.items() if k not in drop}
        return [strip(v) for v in value] if isinstance(value, list) else value

    lines = [line[6:] if line.startswith("data: ") else line for line in answer.splitlines()]
    parts = [strip(json.loads(line)) for line in lines if line and line != "[DONE]" and not line.startswith(":")]
    # How a stream is cut into chunks depends on what else runs.
    streamed = {}
    for part in parts:
        for choice in part.get("choices", []) if isinstance(part, dict) else []:
            if "delta" in choice:
                streamed[choice["index"]] = streamed.get(choice["index"], "") + (choice["delta"].get("content") or "")
    if streamed:
        return json.dumps(streamed, sort_keys=True)
    if len(parts) > 1:
        return "".join(part.get("message", {}).get("content", "") for part in parts)
    return json.dumps(parts, sort_keys=True)


class Load:
    def __init__(self, server, wanted, end):
        self.server, self.wanted, self.end = server, wanted, end
        self.lock = threading.Lock()
        self.counts, self.problems = {}, []

    def count(self, what):
        with self.lock:
            self.counts[what] = self.counts.get(what, 0) + 1

    def run(self, seed):
        rng = random.Random(seed)
        while time.monotonic() < self.end and not self.problems:
            try:
                self.step(rng)
            except Exception as failure:  # noqa: BLE001: told at the end
                with self.lock:
                    self.problems.append(f"{type(failure).__name__}: {str(failure)[:500]}")

    def step(self, rng):
        dice = rng.random()
        if dice < 0.70:
            path, body = rng.choice(self.wanted)[0]
            answer = self.server.post(path, body)
            wanted = next(text for request, text in self.wanted if request == (path, body))
            assert answer.status == 200, (path, answer.status, answer.text[:300])
            assert text_of(answer.text) == wanted, (path, body, answer.text[:300], wanted[:300])
            self.count("right")
        elif dice < 0.82:  # leaves in the middle, or steers from beside
            connection = self.server.connect()
            connection.request("POST", "/v1/chat/completions", json.dumps(chat(rng.choice(["one", "two"]), rng.randrange(99), stream=True, max_tokens=200, ignore_eos=True)))
            response = connection.getresponse()
            response.read(rng.randrange(1, 2000))
            handle = response.getheader("X-Still-Generation")
            if rng.random() < 0.4:
                code = self.server.post(f"/v1/generations/{handle}/{rng.choice(['cancel', 'stop_thinking'])}", "").status
                assert code in (200, 404), code
            connection.close()
            self.count("left")
        elif dice < 0.92:
            path, body = rng.choice(BROKEN)
            code = self.server.post(path, body).status
            assert 400 <= code < 500, (path, body[:80], code)
            self.count("refused")
        elif dice < 0.96:
            code = self.server.post("/api/generate", {"model": rng.choice(["one", "two"]), "keep_alive": rng.choice([0, "5m"])}).status
            assert code == 200, code
            self.count("unloaded")
        else:
            for path in ("/metrics", "/v1/generations", "/api/ps", "/v1/models"):
                assert self.server.get(path).status == 200, path
            self.count("watched")


def main():
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else 5
    n_threads = int(sys.argv[3]) if len(sys.argv) > 3 else 8
    seed = int(os.environ.get("SEED", random.randrange(1 << 30)))
    print(f"seed {seed}")
    server = still_server.start(sys.argv[1], MODELS)
    try:
        wanted = []
        for model in MODELS:
            for request_seed in (1, 2):
                for path, body in variants(model, request_seed):
                    body = json.dumps(body)
                    answer = server.post(path, body)
                    assert answer.status == 200, (path, body, answer.text[:300])
                    wanted.append(((path, body), text_of(answer.text)))
        load = Load(server, wanted, time.monotonic() + seconds)
        threads = [threading.Thread(target=load.run, args=(seed + i,)) for i in range(n_threads)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for _ in range(200):
            if not server.json("GET", "/v1/generations")["data"]:
                break
            time.sleep(0.05)
        else:
            load.problems.append("generations go on without their clients")
        blocks = [line for line in server.get("/metrics").text.splitlines() if line.startswith("still_kv_blocks") and 'state="used"' in line]
        if any(float(line.rsplit(" ", 1)[1]) for line in blocks):
            load.problems.append(f"KV blocks are not given back: {blocks}")
    finally:
        server.stop()
    print(", ".join(f"{n} {what}" for what, n in sorted(load.counts.items())))
    for problem in load.problems:
        print("FAIL ", problem)
    return 1 if load.problems or not load.counts.get("right") else 0


if __name__ == "__main__":
    sys.exit(main())
