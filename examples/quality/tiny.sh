#!/usr/bin/env bash
# Quality fine-tuning on a CPU, beside a control on as many pictures that nobody selected:
#   bash examples/quality/tiny.sh [SEED ...]
set -euo pipefail
cd "$(dirname "$0")/../.."
shapes=runs/shapes out=runs/quality seeds=${*:-1}
[ -d $shapes/decoder/checkpoints ] || bash examples/shapes/run.sh
emu3 prepare images examples/quality/prepare.yaml
emu3 prepare images examples/quality/prepare.yaml --out $out/control "images.select.columns={lot: 1}"
emu3 prepare images examples/quality/prepare.yaml --out $out/held-out \
  --source $shapes/pictures/held-out images.select.table=$shapes/pictures/held-out.jsonl
tune() { # FOLDER PACKS SEED
  emu3 train quality-tiny-cpu run.dir=$out/$1 run.seed=$3 run.init_from=$shapes/decoder \
    run.steps=100 run.save_every=100 data.context=448 batch.size=4 batch.micro_size=4 \
    "data.sources=[{pack: $out/$2/packs/images.pack}]"
}
for seed in $seeds; do
  tune tuned-$seed best $seed
  tune control-$seed control $seed
done
python examples/quality/report.py $out --seeds $seeds
