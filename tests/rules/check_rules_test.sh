#!/bin/sh
# The checks can fail: each is given a tree that breaks its rule, and must say so.
# usage: check_rules_test.sh SOURCE_ROOT SCRATCH_FOLDER CXX
set -eu
root=$1
scratch=$2
cxx=$3
rm -rf "$scratch"
trap 'rm -rf "$scratch"' EXIT  # its objects must not be found by other checks
mkdir -p "$scratch/src/base" "$scratch/src/engine" "$scratch/src/kernels/cpu/avx2" "$scratch/objects/src/kernels/cpu/avx2"
status=0

expect_finding() {  # NAME WANTED_TEXT COMMAND ...
  name=$1
  wanted=$2
  shift 2
  if output=$("$@" 2>&1); then
    echo "$name: passed, but should have found: $wanted"
    status=1
  elif ! echo "$output" | grep -qF "$wanted"; then
    echo "$name: did not say: $wanted"
    echo "$output"
    status=1
  fi
}

echo '#include "engine/engine.h"' > "$scratch/src/base/a.cc"
expect_finding layers 'base/a.cc:1: "engine/engine.h": base/ may not include engine/' \
  python3 "$root/tools/check_layers.py" "$scratch/src"
echo '#include <string>' > "$scratch/src/kernels/cpu/avx2/b.cc"
echo '' > "$scratch/src/base/a.cc"
expect_finding isa_includes '<string>: an ISA file includes only' python3 "$root/tools/check_layers.py" "$scratch/src"

echo 'inline int twice(int x) { return 2 * x; } int (*pointer)(int) = twice;' > "$scratch/weak.cc"
"$cxx" -c "$scratch/weak.cc" -o "$scratch/objects/src/kernels/cpu/avx2/weak.cc.o"
expect_finding weak_symbols 'twice(int)' "$root/tools/check_isa_symbols.sh" "$scratch/objects"
expect_finding no_objects 'no object file' "$root/tools/check_isa_symbols.sh" "$scratch/src"

mkdir -p "$scratch/tests" "$scratch/bench" "$scratch/fuzz"
cp "$root/.clang-format" "$scratch/"
echo 'int   x ;' > "$scratch/src/base/a.cc"
expect_finding format 'a.cc:1:' "$root/tests/rules/check_format.sh" "$scratch"
exit $status
