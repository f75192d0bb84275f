#!/usr/bin/env bash
# Everything that needs an NVIDIA GPU, in four parts of under nine minutes each.
#   PART=tests|head|attention|step PYTHON=python3 WHEELS=folder OUT=folder bash tools/gpu.sh
# Without PART all four, one after another. PYTHON: default .venv's, else python3. WHEELS: packages
# that this Python lacks, installed under build/ without a network; make gpu-check looks at them
# beforehand. OUT: where a log and a JSON for each part go, default benchmarks/results. QUICK=1 is a
# dry run on any machine: small sizes, nothing compiled, its results in build/gpu/quick.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
root=$PWD

python=${PYTHON:-}
[ -n "$python" ] || { [ -x .venv/bin/python ] && python=$root/.venv/bin/python || python=python3; }
out=$root/benchmarks/results
[ -z "${QUICK:-}" ] || out=$root/build/gpu/quick
out=${OUT:-$out}
mkdir -p "$out" build/gpu/path

fail() {
  echo "make gpu: $1" >&2
  exit 1
}

[ -n "${QUICK:-}" ] || "$python" - <<'PYTHON' ||
import torch
raise SystemExit(not (torch.cuda.is_available() and torch.cuda.get_device_capability()[0] == 9))
PYTHON
  fail "no GPU of capability 9.x (H100, H200) is visible to torch in $python; nothing was run"

# The folder kernels/ imports as emu3_kernels, installed or not.
ln -sfn "$root/kernels" build/gpu/path/emu3_kernels
if [ -n "${WHEELS:-}" ]; then
  "$python" -m pip install --quiet --no-index --no-deps --no-compile --upgrade \
    --target build/gpu/site "$WHEELS"/*.whl || fail "the wheels in $WHEELS do not install"
fi
paths=$root:$root/tools:$root/benchmarks:$root/build/gpu/path:$root/build/gpu/site
export PYTHONPATH=$paths${PYTHONPATH:+:$PYTHONPATH}
export PYTHONUNBUFFERED=1
unset TRITON_INTERPRET
"$python" -c 'import pytest, megatron.core, emu3_megatron.parallel' ||
  fail "a package is missing (above); make gpu-check names every one"
export PATH=$PATH:/usr/local/cuda/bin
export PYTHON=$python

exec "$python" -m gpu_parts ${PART:-} --out "$out" ${QUICK:+--quick}
