#!/usr/bin/env bash
# A small pre-trained model of pictures of shapes: runs/shapes/tokenizer/tokenizer and runs/shapes/decoder.
set -euo pipefail
cd "$(dirname "$0")/../.."
out=runs/shapes
[ -f $out/pictures/tokenizer.jsonl ] || python examples/shapes/shapes.py $out/pictures
[ -d $out/tokenizer/tokenizer ] || emu3 tokenizer train tokenizer-tiny-cpu \
  data.images=$out/pictures/tokenizer data.clips=null data.clip_share=null data.area=4096 data.crop=32 \
  run.steps=300 codebook.plain_steps=75 run.dir=$out/tokenizer
emu3 prepare images examples/shapes/prepare.yaml
emu3 train stage1-tiny-cpu run.dir=$out/decoder run.steps=600 run.save_every=600 run.log_every=20 \
  data.context=448 "data.sources=[{pack: $out/data/packs/images.pack}]" data.null_prompt=0.1 \
  batch.size=4 batch.micro_size=4
