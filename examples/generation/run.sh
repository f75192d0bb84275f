#!/usr/bin/env bash
# Every kind that a decoder makes, after `emu3 demo` or `make demo`: into runs/generated.
#   bash examples/generation/run.sh
set -euo pipefail
cd "$(dirname "$0")/../.."
demo=demo/decoder-run tokenizer=demo/tokenizer-run/tokenizer out=runs/generated
cat="A tabby cat looks past the camera." rabbit="A big rabbit comes out of its hole in a meadow."

# Images: one, the likeliest; four by lot, each with a seed of its own.
emu3 generate image $demo "$cat" --temperature 0 --out $out/cat.png
emu3 generate image $demo --prompts demo/photos/rocket.txt -n 4 --preview --out $out/rockets

# Text about images and clips, from several images, and with an image in it.
emu3 generate caption $demo demo/photos/chelsea.png demo/photos/coffee.png --out $out/captions.jsonl
emu3 generate dialogue $demo "<image> and <image> What do they have in common" \
  --show demo/photos/chelsea.png --show demo/photos/coffee.png \
  --context 1024 --max-tokens 64 --out $out/answers.jsonl
emu3 generate text $demo "A tabby cat" --temperature 0 --max-tokens 600 --out $out/story

# A clip from its caption.
emu3 generate clip $demo "$rabbit" --grid 8x14 --fps 8 --seconds 2 --temperature 0 \
  --out $out/rabbit.mp4

# How a clip goes on is learnt first, from windows of two seconds; then one second becomes five.
python examples/generation/windows.py $tokenizer $out
emu3 pack $out/windows --context 704 --out $out/windows.pack
torchrun --nproc-per-node 2 -m emu3_megatron train stage1-tiny-cpu parallel.tensor=2 \
  run.dir=$out/decoder run.init_from=$demo run.steps=150 run.save_every=150 data.null_prompt=0 \
  "data.sources=[{pack: $out/windows.pack}]"
emu3 generate clip $out/decoder "$rabbit" --tokenizer $tokenizer --first $out/first.mp4 \
  --grid 8x14 --fps 8 --seen 1 --more 1 --steps 4 --guidance 1 --temperature 0 --out $out/longer.mp4
