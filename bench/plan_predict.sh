#!/bin/bash
# Predicted against measured speed of this machine: for each model file, `still plan --calibrate` (a slice of layers with
# made-up weights) and `still bench` (the engine with the model), one line each.
# usage: plan_predict.sh STILL MODEL.gguf...
set -eu
still=$1
shift
for model in "$@"; do
  "$still" plan "$model" --calibrate -c 2048 --json |
    python3 -c 'import json,sys; p=json.load(sys.stdin); print(p["decode_tok_per_s"], p["prefill_tok_per_s"])' >/tmp/plan_predict.$$
  "$still" bench "$model" --prefill 512 --decode 64 --depth 0 --seqs 1 --repeat 3 --json |
    python3 -c '
import json, sys
decode, prefill = map(float, open(sys.argv[2]).read().split())
for row in json.load(sys.stdin):
    predicted = prefill if row["test"] == "prefill" else decode
    measured = row["tokens_per_s"]["median"]
    print("%s %s: predicted %.1f, measured %.1f tok/s (%+.1f %%)" % (sys.argv[1], row["test"], predicted, measured, 100 * (predicted / measured - 1)))
' "$(basename "$model")" /tmp/plan_predict.$$
  rm -f /tmp/plan_predict.$$
done
