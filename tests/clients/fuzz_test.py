#!/usr/bin/env python3
"""schemathesis over the server's own OpenAPI document: whatever is sent, no answer is a 5xx, and errors have their shape.

usage: fuzz_test.py STILL [EXAMPLES]
"""
import os
import shutil
import subprocess
import sys
import tempfile

import still_server


def main():
    if shutil.which("schemathesis") is None:
        print("skipped: schemathesis is not installed")
        return 0
    server = still_server.start(sys.argv[1], {"tiny": still_server.TINY / "qwen2" / "model.gguf"})
    notes = tempfile.TemporaryDirectory(prefix="still-fuzz-")  # what it leaves where it runs
    try:
        done = subprocess.run(
            ["schemathesis", "run", server.url + "/openapi.json", "--url", server.url, "--phases", "examples,fuzzing",
             "--checks", "not_a_server_error,status_code_conformance,content_type_conformance", "--max-examples",
             sys.argv[2] if len(sys.argv) > 2 else "40", "--seed", os.environ.get("SEED", "1"), "--request-timeout", "120"],
            timeout=1800, cwd=notes.name)
        assert server.json("GET", "/health"), "the server does not answer any more"
        return done.returncode
    finally:
        server.stop()
        notes.cleanup()


if __name__ == "__main__":
    sys.exit(main())
