#!/bin/bash
# Time of a grid of 98,304 cells by the command itself on one core (6 models x 4 quantisations x 4 device sets x 32
# contexts x 32 concurrencies, as CSV into a file): fit, need, speed and cost of each. Five runs, seconds of processor
# time.
# usage: plan_grid.sh STILL
set -eu
out=$(mktemp)
trap 'rm -f "$out"' EXIT
TIMEFORMAT='%U s user, %R s in all'
for _ in 1 2 3 4 5; do
  time taskset -c 0 "$1" plan 1.5b 7b 8b 14b 32b 70b -q BF16 -q Q8_0 -q Q4_K_M -q GPTQ --on 3090 --on 2x4090 --on 8xh100 \
    --on 4xa100-80 -c "$(seq -s, 256 256 8192)" -n "$(seq -s, 2 2 64)" --csv >"$out"
done
echo "$(($(wc -l <"$out") - 1)) cells"
