#!/bin/bash
# Predicted against measured speed of this machine: for each model file, layers with made-up weights and the engine with
# the model take turns (`still plan --verify`), so that both meet the same neighbours; medians.
# usage: plan_predict.sh STILL MODEL.gguf...
set -eu
still=$1
shift
for model in "$@"; do
  "$still" plan "$model" --verify
done
