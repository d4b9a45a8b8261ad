#!/usr/bin/env python3
"""Runs the curl examples of docs/api.md and docs/api-ollama.md against a server with a tiny model, as they stand there.

An example is a block of kind `sh`; where the next block is of kind `json` or `text`, each of its lines must be found in what
the command prints: as it is, or, where it holds "...", its parts in order. The address and the model's name are replaced.
usage: docs_test.py STILL
"""
import re
import shutil
import subprocess
import sys

import still_server


def examples(text):
    blocks = re.findall(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    for i, (kind, body) in enumerate(blocks):
        if kind == "sh" and "curl" in body:
            wanted = blocks[i + 1][1] if i + 1 < len(blocks) and blocks[i + 1][0] in ("json", "text") else ""
            yield body, wanted


def holds(line, output):
    at = 0
    for part in line.strip().split("..."):
        at = output.find(part, at)
        if at < 0:
            return False
        at += len(part)
    return True


def main():
    if shutil.which("curl") is None:
        print("skipped: there is no curl")
        return 0
    server = still_server.start(sys.argv[1], {"tiny": still_server.TINY / "qwen2" / "model.gguf"})
    failed = n = 0
    try:
        pages = [still_server.ROOT / "docs" / name for name in ("api.md", "api-ollama.md")]
        for command, wanted in (e for page in pages for e in examples(page.read_text(encoding="utf-8"))):
            n += 1
            line = command.replace("http://127.0.0.1:11434", server.url).replace("qwen2.5:0.5b", "tiny")
            done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=120)
            missing = [w for w in wanted.splitlines() if w.strip() and not holds(w, done.stdout)]
            if done.returncode != 0 or missing or not done.stdout.strip():
                failed += 1
                print(f"FAIL  {command.strip()}\n  exit {done.returncode}, not found: {missing}\n  {done.stdout[:1500]}{done.stderr[-300:]}")
    finally:
        server.stop()
    print(f"{n - failed} examples passed, {failed} failed")
    return 1 if failed or n == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
