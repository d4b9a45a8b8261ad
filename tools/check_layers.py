#!/usr/bin/env python3
"""Checks who includes whom: every #include "module/..." below src/ may only name a module to the left of its own.

The order is HACKING.md's ("Who may include whom"); modules of one group do not include each other. Also: only tensor/,
kernels/cuda/ and dist/ may include CUDA headers, and ISA files (kernels/cpu/<isa>/) include nothing but <immintrin.h>, <cstdint>,
the kernel table and files of their own level or of a lower one.
usage: check_layers.py [SOURCE_FOLDER]      exit status 1 and one line a finding if something is wrong
"""
import pathlib
import re
import sys

GROUPS = [
    ["base"], ["tensor"], ["quant"], ["kernels"], ["ops"], ["files", "text", "dist"], ["models"], ["plan", "hub"],
    ["engine", "grade"], ["grammar"], ["compress", "train", "eval", "knowledge"], ["serve"], ["cli"],
]
LEVEL = {module: level for level, group in enumerate(GROUPS) for module in group}
INCLUDE = re.compile(r'^\s*#\s*include\s+(?:"([^"]+)"|<([^>]+)>)')
CUDA_HEADER = re.compile(r"^(cuda|cublas|nccl|cudnn|cutlass|cute/|nvml)")
CUDA_FOLDERS = ("tensor/", "kernels/cuda/", "dist/")
ISA_SYSTEM_HEADERS = {"immintrin.h", "cstdint"}


def check_file(path, name):
    """Yields (line number, finding) for the file `name`, relative to src/."""
    module = name.split("/")[0]
    is_isa_file = name.startswith("kernels/cpu/") and not name.endswith(("_test.cc", "_bench.cc"))
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        match = INCLUDE.match(line)
        if not match:
            continue
        own, system = match.groups()
        if own:
            if "/" not in own:
                yield number, f'"{own}": include lines start at src/, as "module/file.h"'
                continue
            target = own.split("/")[0]
            if target not in LEVEL:
                yield number, f'"{own}": {target}/ is no module (known: {", ".join(LEVEL)})'
            elif target != module and LEVEL[target] >= LEVEL[module]:
                yield number, f'"{own}": {module}/ may not include {target}/'
            if is_isa_file and not (own == "kernels/kernel_table.h" or own.startswith("kernels/cpu/")):
                yield number, f'"{own}": an ISA file includes only kernels/kernel_table.h and files of kernels/cpu/'
        else:
            if CUDA_HEADER.match(system) and not name.startswith(CUDA_FOLDERS):
                yield number, f"<{system}>: CUDA headers belong to {', '.join(CUDA_FOLDERS)}"
            if is_isa_file and system not in ISA_SYSTEM_HEADERS:
                yield number, f"<{system}>: an ISA file includes only {', '.join(sorted(ISA_SYSTEM_HEADERS))}"


def main():
    root = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else pathlib.Path(__file__).resolve().parent.parent / "src"
    files = sorted(path for path in root.rglob("*") if path.suffix in {".cc", ".h", ".cu", ".cuh"})
    if not files:
        sys.exit(f"{root}: no source files")
    n_findings = 0
    for path in files:
        name = path.relative_to(root).as_posix()
        if name.split("/")[0] not in LEVEL:
            print(f"{name}: {name.split('/')[0]}/ is no module (known: {', '.join(LEVEL)})")
            n_findings += 1
            continue
        for number, finding in check_file(path, name):
            print(f"{name}:{number}: {finding}")
            n_findings += 1
    print(f"{len(files)} files, {n_findings} findings")
    sys.exit(1 if n_findings else 0)


if __name__ == "__main__":
    main()
