#!/usr/bin/env bash
# Questions about handwritten digits: every stage on a CPU, from files to answers, into runs/.
# Arguments change the recipes of both training stages: run-digits.sh run.seed=1
set -euo pipefail
here=$(dirname "$0")
out=runs/digits
python "$here/digits.py" "$out"
emu3 tokenizer train "$here/tokenizer.yaml" "run.dir=$out/tokenizer"
emu3 prepare all prepare-dialogues-tiny-cpu
torchrun --nproc-per-node 2 -m emu3_megatron train image-to-text-tiny-cpu "$@"
torchrun --nproc-per-node 2 -m emu3_megatron train instruct-tiny-cpu "$@"
emu3 prepare dialogues prepare-dialogues-tiny-cpu --source "$out/held-out.json" \
  --out "$out/held-out-data" 'packs=[]'
python "$here/answers.py" runs/instruct-tiny "$out/held-out-data" --json "$out/answers.json" \
  --picture "$out/answers.png" --tokenizer "$out/tokenizer/tokenizer"
