#!/usr/bin/env bash
# Adapters on the small model of examples/shapes, by DeepSpeed on two processes of a CPU:
#   bash examples/lora/run.sh [dotted.key=value ...]
set -euo pipefail
cd "$(dirname "$0")/../.."
shapes=runs/shapes quality=runs/quality out=runs/lora
[ -d $shapes/decoder/checkpoints ] || bash examples/shapes/run.sh
[ -d $quality/best ] || emu3 prepare images examples/quality/prepare.yaml
[ -d $quality/held-out ] || emu3 prepare images examples/quality/prepare.yaml \
  --out $quality/held-out --source $shapes/pictures/held-out \
  images.select.table=$shapes/pictures/held-out.jsonl
[ -d $out/base ] || emu3 convert export --from $shapes/decoder --to $out/base
torchrun --nproc-per-node 2 -m emu3_megatron train lora-tiny-cpu "$@"
for run in $shapes/decoder $out/run; do
  emu3 generate image $run "A large red circle." --tokenizer $shapes/tokenizer/tokenizer \
    --grid 8x8 --guidance 1 --out $out/${run##*/}.png
done
