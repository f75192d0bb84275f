#!/usr/bin/env bash
# Emu3-Chat on one node of eight cards: bash examples/lora/node.sh [dotted.key=value ...]
set -euo pipefail
exec torchrun --nproc-per-node 8 -m emu3_megatron train instruct-8b-deepspeed-h100x8 "$@"
