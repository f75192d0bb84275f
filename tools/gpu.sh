#!/usr/bin/env bash
# Everything that needs an NVIDIA GPU, in nine minutes: build csrc/, the GPU tests, compute-sanitizer,
# then the benchmarks. A part that fails does not hide the others; the exit status tells.
#   PYTHON=python3 WHEELS=folder OUT=folder bash tools/gpu.sh
# PYTHON: default .venv's, else python3. WHEELS: packages that this Python lacks, installed under
# build/ without a network. OUT: where results and logs go, default benchmarks/results.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
root=$PWD
deadline=$((SECONDS + 540))

python=${PYTHON:-}
[ -n "$python" ] || { [ -x .venv/bin/python ] && python=$root/.venv/bin/python || python=python3; }
out=${OUT:-$root/benchmarks/results}
mkdir -p "$out" build/gpu/path

fail() {
  echo "make gpu: $1" >&2
  exit 1
}

"$python" - <<'PYTHON' || fail "no GPU of capability 9.x (H100, H200) is visible to torch in $python; nothing was run"
import torch
raise SystemExit(not (torch.cuda.is_available() and torch.cuda.get_device_capability()[0] == 9))
PYTHON

# The folder kernels/ imports as emu3_kernels, installed or not.
ln -sfn "$root/kernels" build/gpu/path/emu3_kernels
if [ -n "${WHEELS:-}" ]; then
  "$python" -m pip install --quiet --no-index --no-deps --no-compile --upgrade \
    --target build/gpu/site "$WHEELS"/*.whl || fail "the wheels in $WHEELS do not install"
fi
export PYTHONPATH=$root:$root/build/gpu/path:$root/build/gpu/site${PYTHONPATH:+:$PYTHONPATH}
export PYTHONUNBUFFERED=1
"$python" -c 'import pytest, megatron.core, emu3_megatron.parallel' ||
  fail "a package is missing (above); put its wheel into a folder and name it: WHEELS=folder make gpu"
PATH=$PATH:/usr/local/cuda/bin

summary=()
status=0

# part NAME SECONDS COMMAND...: what it prints goes to the screen and to NAME.log.
part() {
  local name=$1 limit=$2 started=$SECONDS left=$((deadline - SECONDS)) code=0 result=passed
  shift 2
  [ "$limit" -lt "$left" ] || limit=$left
  echo "=== $name"
  if [ "$limit" -lt 5 ]; then
    code=1 result="no time left"
  else
    timeout --kill-after=5 "$limit" "$@" 2>&1 | tee "$out/$name.log"
    code=${PIPESTATUS[0]}
    [ "$code" -eq 0 ] || result="failed ($code)"
    [ "$code" -ne 124 ] && [ "$code" -ne 137 ] || result="stopped after $limit s"
  fi
  [ "$code" -eq 0 ] || status=1
  summary+=("$(printf '%-24s %-20s %4d s' "$name" "$result" $((SECONDS - started)))")
}

part build 90 make csrc build/gpu/sanitized
# A process each: after an illegal access nothing else runs in the same one.
for file in tests/gpu/test_*.py; do
  part "$(basename "$file" .py)" 120 "$python" -m pytest -q -m gpu "$file"
done
for tool in memcheck racecheck; do
  part $tool 60 compute-sanitizer --tool $tool --error-exitcode 1 build/gpu/sanitized
done
part dpo 60 "$python" benchmarks/dpo.py --json "$out/dpo_gpu.json"
part decoding_kernels 60 \
  "$python" benchmarks/decoding_kernels.py --json "$out/decoding_kernels_gpu.json"
part tokenizer_encoding 60 \
  "$python" benchmarks/tokenizer_encoding.py --json "$out/tokenizer_encoding_gpu.json"
part tokenizer_step 90 \
  "$python" benchmarks/tokenizer_step.py --json "$out/tokenizer_step_gpu.json"
part generation 120 "$python" benchmarks/generation.py --json "$out/generation_gpu.json"
part linear_cross_entropy $(((deadline - SECONDS) / 2)) \
  "$python" benchmarks/linear_cross_entropy.py --json "$out/linear_cross_entropy_gpu.json"
part ring_attention 540 \
  "$python" benchmarks/ring_attention.py --json "$out/ring_attention_gpu.json"

printf '\n'
printf '%s\n' "${summary[@]}"
exit $status
