#!/usr/bin/env python3
"""The memory that `still serve` planned for a model against what the operating system counts once all its sequences
have filled their share of the KV cache.

usage: plan_serve_memory.py STILL MODEL.gguf [PARALLEL [CONTEXT]]
"""
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

from serve import free_port, make_store

SLACK = 32 << 20


def call(port, path, body=None):
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{port}{path}", data), timeout=600) as reply:
        return json.load(reply)


def anonymous_bytes(pid):
    with open(f"/proc/{pid}/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("RssAnon:"))


def generate(port, n_words, seed):
    rng = random.Random(seed)
    words = "river stone light garden winter paper engine silver".split()
    prompt = " ".join(rng.choice(words) for _ in range(n_words))
    return call(port, "/api/generate", {"model": "first", "prompt": prompt, "raw": True, "stream": False,
                                        "options": {"num_predict": 1, "temperature": 0}})["prompt_eval_count"]


def main():
    still, model = sys.argv[1:3]
    parallel = int(sys.argv[3]) if len(sys.argv) > 3 else 4
    context = int(sys.argv[4]) if len(sys.argv) > 4 else 2048
    folder, port = tempfile.mkdtemp(prefix="plan_serve_"), free_port()
    make_store(f"{folder}/store", {"first": model})
    server = subprocess.Popen([still, "serve", "--port", str(port), "--parallel", str(parallel), "-c", str(context),
                               "--models", f"{folder}/store", "--access-log", os.devnull], stderr=subprocess.DEVNULL)
    try:
        for _ in range(100):
            try:
                call(port, "/api/version")
                break
            except OSError:
                time.sleep(0.1)
        before = anonymous_bytes(server.pid)
        words_a_token = 200 / generate(port, 200, 0)
        n_words = int(0.95 * context * words_a_token)
        threads = [threading.Thread(target=generate, args=(port, n_words, seed + 1)) for seed in range(parallel)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        planned = next(entry["size"] for entry in call(port, "/api/ps")["models"])
        resident = anonymous_bytes(server.pid) - before
    finally:
        server.terminate()
        server.wait()
        shutil.rmtree(folder, ignore_errors=True)
    mib = 1 << 20
    holds = abs(planned - resident) <= max(SLACK, planned // 100)
    print(f"{os.path.basename(model)}, {parallel} at once, context {context}: planned {planned / mib:.1f} MiB, resident "
          f"{resident / mib:.1f}, {(resident - planned) / mib:+.1f}: {'holds' if holds else 'DOES NOT HOLD'}")
    sys.exit(0 if holds else 1)


if __name__ == "__main__":
    main()
