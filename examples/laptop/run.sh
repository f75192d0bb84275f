#!/usr/bin/env bash
# Photos with captions in, a trained tiny decoder and one drawn image out.
set -euo pipefail
photos=${1:?"usage: run.sh FOLDER_OF_PHOTOS [PROMPT]"}
prompt=${2:-$(head -n 1 "$(ls "$photos"/*.txt | head -n 1)")}
out=runs/laptop

emu3 tokenizer train tokenizer-tiny-cpu "data.images=$photos" data.clips=null \
  data.clip_share=null "run.dir=$out/tokenizer"
emu3 prepare images prepare-tiny-cpu --source "$photos" --out "$out/data" \
  --tokenizer "$out/tokenizer/tokenizer"
torchrun --nproc-per-node 2 -m emu3_megatron train stage1-tiny-cpu parallel.tensor=2 \
  "run.dir=$out/decoder" "data.sources=[{pack: $out/data/packs/stage1.pack}]"
emu3 generate image "$out/decoder" "$prompt" --tokenizer "$out/tokenizer/tokenizer" \
  --guidance 1 --temperature 0 --out "$out/image.png"
