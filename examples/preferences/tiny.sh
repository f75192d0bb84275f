#!/usr/bin/env bash
# DPO on a CPU on pairs that a rule decides, with measures and pictures before and after:
#   bash examples/preferences/tiny.sh [SEED ...]
set -euo pipefail
cd "$(dirname "$0")/../.."
shapes=runs/shapes seeds=${*:-1}
[ -d $shapes/decoder/checkpoints ] || bash examples/shapes/run.sh
draw() { # CHECKPOINT PROMPTS FOLDER SEED [option ...]
  emu3 preferences sample "$1" "$2" --out "$3" --seed "$4" "${@:5}" \
    --tokenizer $shapes/tokenizer/tokenizer --guidance 1 --top-k 32 --batch 64
  python examples/preferences/rule.py score "$3"
}
align() { # SEED FOLDER
  local seed=$1 out=$2 trained=() held_out=()
  python examples/preferences/rule.py prompts "$out"
  # A prompt gives one pair, and there are 40 prompts: six rounds, each with seeds of its own.
  for round in 1 2 3 4 5 6; do
    draw $shapes/decoder "$out/seen.txt" "$out/samples-$round" $((100000 * seed + 1000 * round))
    emu3 preferences import "$out/samples-$round" "$out/samples-$round/rule.csv" --column vividness
    emu3 preferences build "$out/samples-$round" --out "$out/pairs-$round" --margin 1 --held-out 0.15
    trained+=("$out/pairs-$round") held_out+=("$out/pairs-$round-held-out")
  done
  emu3 pack "${trained[@]}" --out "$out/pairs.pack" --context 224
  emu3 pack "${held_out[@]}" --out "$out/held-out.pack" --context 224
  local recipe=(dpo-tiny-cpu run.dir="$out/dpo" run.init_from=$shapes/decoder run.seed="$seed"
    data.context=224 "data.sources=[{pack: $out/pairs.pack}]" batch.size=8 batch.micro_size=8
    "validation={every: 20, batches: 4, sources: [{pack: $out/held-out.pack}]}"
    objective.reference.folder="$out/reference" objective.nll=3 optimizer.lr=3.0e-4)
  emu3 reference "${recipe[@]}"
  emu3 train "${recipe[@]}"
  draw $shapes/decoder "$out/unseen.txt" "$out/before" $((100000 * seed)) --samples 32
  draw "$out/dpo" "$out/unseen.txt" "$out/after" $((100000 * seed)) --samples 32
}
for seed in $seeds; do
  align "$seed" "runs/preferences/$seed"
done
python examples/preferences/report.py runs/preferences --seeds $seeds
