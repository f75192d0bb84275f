#!/usr/bin/env bash
# Install the project into a virtual environment: torch first (its CPU build where there is no GPU,
# so that a laptop does not fetch gigabytes of CUDA), then everything else.
#   PYTHON=python3.12 bash tools/install.sh .venv
set -euo pipefail
venv=${1:?"usage: tools/install.sh VENV"}
python=${PYTHON:-python3}

"$python" -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' || {
  echo "Python 3.11 or 3.12 is needed, $("$python" --version) was found: make install PYTHON=python3.12" >&2
  exit 1
}
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
pip=("$venv/bin/python" -m pip install --quiet --disable-pip-version-check)

if "$venv/bin/python" -c 'import torch' 2>/dev/null; then
  echo "torch is installed already"
elif command -v nvidia-smi >/dev/null 2>&1; then
  "${pip[@]}" 'torch>=2.10,<3'
else
  # uv knows where PyTorch's CPU builds are; where it cannot reach them, a plain install.
  "${pip[@]}" uv
  UV_HTTP_TIMEOUT=20 UV_HTTP_RETRIES=0 "$venv/bin/uv" pip install --quiet --python "$venv/bin/python" \
    --torch-backend cpu 'torch>=2.10,<3' 2>/dev/null || "${pip[@]}" torch==2.13.0
fi

"${pip[@]}" --editable '.[demo,prepare,tracking,test]'
# The Qwen byte-BPE ranks ride in this wheel; its own dependencies are not needed.
"${pip[@]}" --no-deps 'dashscope>=2.0,<2.1'
# OCR with its weights; its dependencies would bring an OpenCV that needs a display.
"${pip[@]}" --no-deps 'rapidocr-onnxruntime>=1.4,<2'
echo "installed; try: $venv/bin/emu3 --help"
