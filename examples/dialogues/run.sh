#!/usr/bin/env bash
# On one node of eight GPUs: bash run.sh [dotted.key=value ...]
set -euo pipefail
exec torchrun --nproc-per-node 8 -m emu3_megatron train instruct-8b-h100x8 "$@"
