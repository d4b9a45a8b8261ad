#!/usr/bin/env python3
"""Starts a server and runs node_clients_test.mjs, in the folder where its packages are.

usage: node_clients.py STILL FOLDER
"""
import os
import pathlib
import subprocess
import sys

import still_server


def main():
    tiny = still_server.TINY / "qwen2" / "model.gguf"
    folder = os.environ.get("STILL_TEST_MODELS")
    models = {"chat": f"{folder}/q05.gguf" if folder else tiny, "thinking": tiny}
    if folder and pathlib.Path(folder, "q15think.gguf").exists():
        models["thinking"] = f"{folder}/q15think.gguf"
    server = still_server.start(sys.argv[1], models)
    try:
        return subprocess.run(["node", "node_clients_test.mjs", server.url, "chat:latest", "thinking:latest",
                               "real" if folder else "tiny"], cwd=sys.argv[2]).returncode
    finally:
        server.stop()


if __name__ == "__main__":
    sys.exit(main())
