#!/usr/bin/env bash
# Photos with captions in, a trained tiny decoder and one drawn image out.
set -euo pipefail
photos=${1:?"usage: run.sh FOLDER_OF_PHOTOS [PROMPT]"}
prompt=${2:-$(head -n 1 "$(ls "$photos"/*.txt | head -n 1)")}
out=runs/laptop

emu3 tokenizer train tokenizer-tiny-cpu "data.images=$photos" data.clips=null --out "$out/tokenizer"
emu3 prepare images --source "$photos" --out "$out/images" --tokenizer "$out/tokenizer/tokenizer" \
  --model emu3-tiny --area 16384
emu3 pack "$out/images" --out "$out/images.pack" --context 704
torchrun --nproc-per-node 2 -m emu3_megatron train stage1-tiny-cpu parallel.tensor=2 \
  "run.dir=$out/decoder" "data.sources=[{pack: $out/images.pack}]"
emu3 generate --checkpoint "$out/decoder" --tokenizer "$out/tokenizer/tokenizer" \
  --prompt "$prompt" --grid 16x16 --guidance 1 --temperature 0 --out "$out/image.png"
