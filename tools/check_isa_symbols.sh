#!/bin/sh
# Object files that are compiled for more than the x86-64 baseline must define no weak symbol: the linker keeps one copy of an
# inline function, and if that copy holds AVX-512 instructions, every older CPU crashes in code that is not a kernel.
# usage: tools/check_isa_symbols.sh BUILD_FOLDER     exit status 1 and one line a finding if something is wrong
set -eu

folder=${1:?usage: $0 BUILD_FOLDER}
objects=$(find "$folder" -path '*/kernels/cpu/*' -name '*.o' ! -name '*_test.cc.o' ! -name '*_bench.cc.o' | sort)
if [ -z "$objects" ]; then
  echo "$folder: no object file of kernels/cpu/ found"
  exit 1
fi
n_objects=0
n_findings=0
for object in $objects; do
  n_objects=$((n_objects + 1))
  # W, V: weak; u: one copy for the whole program. DW.ref.* names of the unwinder are references, not code.
  weak=$(nm --defined-only -C "$object" | awk '$2 ~ /^[WVu]$/ && $3 !~ /^DW\.ref\./ { $1 = ""; print }')
  if [ -n "$weak" ]; then
    n_findings=$((n_findings + 1))
    echo "$object defines weak symbols:$weak"
  fi
done
echo "$n_objects objects, $n_findings findings"
[ "$n_findings" -eq 0 ]
