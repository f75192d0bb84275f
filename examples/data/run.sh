#!/usr/bin/env bash
# Debian's stamps and handbooks and a clip: from files to packs, and a page to look at.
set -euo pipefail
cd "$(dirname "$0")/../.."
[ -f runs/data/captions.jsonl ] || python examples/data/fetch.py runs/data
emu3 tokenizer train tokenizer-tiny-cpu data.images=runs/data/stamps data.clips=null \
  data.clip_share=null run.dir=runs/data/tokenizer
emu3 prepare all examples/data/recipe.yaml "$@"
emu3 check runs/data/prepared --deep
emu3 inspect data runs/data/prepared --tokenizer runs/data/tokenizer/tokenizer --out runs/data/data.html
