#!/usr/bin/env python3
"""Runs the command-line cases of a text file.

A case is a paragraph:
    # what it claims
    $ a shell command; `still` is the program under test, $TINY the tiny models, the current folder an empty scratch one
    exit 3              the wanted exit status (0 where the line is missing); with a line `exit!` it is not still that fails
    out: some text      stdout holds it        out! some text    stdout does not        out= text    stdout is just that line
    err: some text      stderr holds it        err~ regex        stderr matches (out~ likewise)
Besides, every failing command must say one line "still: ..." on stderr, and none may die of a signal. Cases of a file run in
order, in one scratch folder with one store. `# needs NAME` as a case's second line skips it unless `command -v NAME` finds it.
usage: run_cases.py STILL SOURCE_ROOT SCRATCH CASES.txt
"""
import os
import pathlib
import re
import shutil
import subprocess
import sys


def parse(path):
    for paragraph in path.read_text(encoding="utf-8").split("\n\n"):
        lines = [line for line in paragraph.splitlines() if line.strip()]
        if not any(line.startswith("$ ") for line in lines):
            continue
        yield lines


def check(kind, wanted, text):
    if kind == ":":
        return wanted in text
    if kind == "!":
        return wanted not in text
    if kind == "=":
        return text.rstrip("\n") == wanted
    return re.search(wanted, text, re.MULTILINE) is not None


def run_case(lines, env, folder):
    """Returns the findings of one case, empty if it holds."""
    findings = []
    command = "\n".join(line[2:] for line in lines if line.startswith("$ "))
    wanted_exit = next((int(line[5:]) for line in lines if line.startswith("exit ")), 0)
    done = subprocess.run(["sh", "-c", command], env=env, cwd=folder, capture_output=True, timeout=300, stdin=subprocess.DEVNULL)
    out, err = done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace")
    if done.returncode != wanted_exit:
        findings.append(f"exit {done.returncode}, wanted {wanted_exit}")
    if wanted_exit != 0 and not any(line.startswith("exit!") for line in lines):
        said = [line for line in err.splitlines() if line.startswith("still: ")]
        if len(said) != 1:
            findings.append(f"{len(said)} lines \"still: ...\" on stderr, wanted one sentence")
    for line in lines:
        match = re.match(r"(out|err)([:!=~]) ?(.*)$", line)
        if match:
            stream, kind, wanted = match.groups()
            if not check(kind, wanted, out if stream == "out" else err):
                findings.append(f"not so: {line}")
    if findings:
        findings.append(f"$ {command}\n-- stdout\n{out[-3000:]}\n-- stderr\n{err[-3000:]}")
    return findings


def main():
    still, root, scratch, cases = sys.argv[1:5]
    folder = pathlib.Path(scratch).resolve()
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "work").mkdir(parents=True)
    env = {
        # libedit keeps some strings of a terminal's session until the program ends.
        "LSAN_OPTIONS": f"suppressions={pathlib.Path(__file__).resolve().parent / 'lsan_suppressions.txt'}:print_suppressions=0",
        "PATH": f"{pathlib.Path(still).resolve().parent}:{os.environ['PATH']}",
        "HOME": str(folder / "home"),
        "STILL_MODELS": str(folder / "models"),
        "TINY": str(pathlib.Path(root).resolve() / "testdata" / "tiny"),
        "LC_ALL": "C.UTF-8",
    }
    for name in ("STILL_ISA", "ASAN_OPTIONS", "UBSAN_OPTIONS"):
        if name in os.environ:
            env[name] = os.environ[name]
    n_cases = n_failed = n_skipped = 0
    for lines in parse(pathlib.Path(cases)):
        title = lines[0].lstrip("# ")
        needed = next((line[8:] for line in lines if line.startswith("# needs ")), None)
        if needed and not shutil.which(needed):
            print(f"skipped: {title} (no {needed} here)")
            n_skipped += 1
            continue
        n_cases += 1
        findings = run_case(lines, env, folder / "work")
        if findings:
            n_failed += 1
            print(f"FAILED: {title}")
            print("\n".join(findings))
    print(f"{n_cases} cases, {n_failed} failed, {n_skipped} skipped")
    sys.exit(1 if n_failed or n_cases == 0 else 0)


if __name__ == "__main__":
    main()
