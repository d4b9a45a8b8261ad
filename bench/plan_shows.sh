#!/bin/bash
# Everything that `still plan` claims about itself, run and written as Markdown: the fit matrix, the advice for five
# questions, the check of all claims, multi-node plans, break-even; with model files also the memory contract and the
# predicted against the measured speed (minutes, on a quiet machine). The figures of docs/plan.md come from it.
# usage: plan_shows.sh STILL [MODEL.gguf...]
set -u
still=$1
shift

show() {
  printf '\n`still plan %s`\n```\n' "$*"
  "$still" plan "$@" 2>&1 | cut -c1-220 | sed 's/ *$//'
  printf '```\n'
}

printf '# What still plan says\n\n%s; %s.\n' "$("$still" plan machine | head -2 | paste -sd ';')" "$("$still" version | head -1)"

printf '\n## Fit matrix, 16 bits\n'
show 1.5b 7b 8b 14b 32b 70b -q F16 --on v100 --on a100-40 --on 2xv100 --on 2xa100-40 -c 2048
show 70b -q Q4_K_M --on 2xv100 --on 2xa100-40 -c 8192

printf '\n## Advice\n'
show --advise --on 3090 --task math -c 8192
show --advise --on 4060 --task math -c 8192
show --advise --on h100 --task code -c 8192
show --advise --on 2xa100-80 --task code --permissive -n 4 -c 8192
show --advise --on 8xh200 --task science -n 8 -c 8192

printf '\n## 671B on sixteen H100, and on a CPU with one GPU\n'
show r1 -q FP8-BLOCK --on 16xh100 -c 32768 -n 16 --explain
show r1 -q FP8-BLOCK --on 16xh100 --tensor 1 --data 16 --expert 16 -c 4989 -n 512
show r1 -q FP8-BLOCK --on 144xh800 --expert 144 --data 144 --tensor 1 --redundant-experts 32 -c 4989 -n 12672
show r1 -q Q4_K_M --on 4090 --fit --host xeon-6454s
show r1 -q Q4_K_M --on 4090 --fit --host xeon-6454s-2s

printf '\n## Own hardware against APIs\n'
show 32b --on 2x3090 --break-even --purchase 3500

printf '\n## Claims\n'
printf '\n`still plan check`\n```\n'
"$still" plan check | tail -1
printf '```\n'

if [ $# -gt 0 ]; then
  printf '\n## Planned, allocated, resident\n'
  for model in "$@"; do show "$model" --contract -c 512; done
  printf '\n## Predicted and measured\n'
  for model in "$@"; do show "$model" --verify; done
fi
