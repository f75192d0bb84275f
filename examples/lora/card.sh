#!/usr/bin/env bash
# Adapters for Emu3-Chat on one card: bash examples/lora/card.sh [dotted.key=value ...]
set -euo pipefail
exec emu3 train instruct-8b-lora-h100x1 "$@"
