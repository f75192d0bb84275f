#!/usr/bin/env bash
# Install the project into a virtual environment: torch first (its CPU build where there is no GPU,
# so that a laptop does not fetch gigabytes of CUDA), then everything else.
#   bash tools/install.sh .venv              # PYTHON=python3.12 asks for that one
#   bash tools/install.sh --system-packages  # the Debian packages that are missing here
set -euo pipefail

# The newest that the tests have passed with, where the CPU build cannot be chosen by name.
torch=2.13.0
supported='import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))'

say() { echo "install: $*"; }

fail() {
  echo "install: $*" >&2
  exit 1
}

# The first Python that will do, or nothing.
find_python() {
  local candidate
  for candidate in ${PYTHON:-} python3 python3.13 python3.12 python3.11; do
    if "$candidate" -c "$supported" 2>/dev/null; then
      command -v "$candidate"
      return
    fi
  done
}

version_of() { "$1" -c 'import sys; print("{}.{}.{}".format(*sys.version_info))'; }

# Debian splits venv and ensurepip from Python.
has_venv() { "$1" -c 'import ensurepip, venv' 2>/dev/null; }

venv_package() { "$1" -c 'import sys; print("python{}.{}-venv".format(*sys.version_info))'; }

# Debian packages that are missing: for the virtual environment, and for tests.
system_packages() {
  local python
  python=$(find_python)
  if [ -z "$python" ]; then
    echo python3-venv
  elif ! has_venv "$python"; then
    venv_package "$python"
  fi
  command -v g++ >/dev/null || echo g++
}

# The command that installs Debian packages, as this user would type it.
apt_install() {
  local sudo=""
  [ "$(id -u)" = 0 ] || sudo="sudo "
  echo "${sudo}apt-get install $*"
}

make_venv() {
  local python
  python=$(find_python)
  if [ -n "$python" ] && has_venv "$python"; then
    say "Python $(version_of "$python") ($python)"
    "$python" -m venv "$venv"
  elif command -v uv >/dev/null; then
    say "uv makes the virtual environment, and fetches a Python (about 30 MB) if it knows none"
    uv venv --seed --python "${python:-3.13}" "$venv"
  elif [ -n "$python" ]; then
    fail "Python $(version_of "$python") lacks venv: $(apt_install "$(venv_package "$python")")" \
      "(or what holds ensurepip on your system), then the same command again"
  else
    fail "no Python 3.11 to 3.13 was found: install one, or uv, which brings one" \
      "(curl -LsSf https://astral.sh/uv/install.sh | sh), then the same command again;" \
      "PYTHON=/path/to/python3.13 names one that is not on the PATH"
  fi
}

# Whether pip would take a torch with CUDA: its packages are there then.
pip_brings_cuda() {
  "${pip[@]}" --quiet --dry-run --report - "torch==$torch" 2>/dev/null |
    grep '"nvidia[-_]' >/dev/null # not --quiet, which would end pip with an error
}

install_torch() {
  if "$venv/bin/python" -c 'import torch' 2>/dev/null; then
    say "torch is installed already"
    return
  elif command -v nvidia-smi >/dev/null; then
    say "torch for the GPU that is here: about 2.7 GB to fetch"
    "${pip[@]}" 'torch>=2.10,<3'
    return
  fi
  say "torch, its CPU build: about 0.2 GB to fetch"
  # uv knows where PyTorch's CPU builds are.
  command -v uv >/dev/null || "${pip[@]}" --quiet uv
  if UV_HTTP_TIMEOUT=20 UV_HTTP_RETRIES=0 PATH="$PATH:$venv/bin" uv pip install \
    --python "$venv/bin/python" --torch-backend cpu 'torch>=2.10,<3'; then
    return
  fi
  say "PyTorch's CPU builds cannot be reached; asking pip for torch $torch"
  if pip_brings_cuda; then
    say "pip has only the build with CUDA: about 2.7 GB to fetch, 5.2 GB on disk (Ctrl-C stops)"
  fi
  "${pip[@]}" "torch==$torch"
}

if [ "${1:-}" = --system-packages ]; then
  system_packages
  exit
fi
venv=${1:?"usage: tools/install.sh VENV"}
pip=("$venv/bin/python" -m pip install --disable-pip-version-check)
[ -x "$venv/bin/pip" ] || make_venv
install_torch
say "everything else: about 0.8 GB to fetch"
"${pip[@]}" --editable '.[demo,prepare,serve,tracking,test]'
say "two packages without their dependencies, which are not needed or unwanted"
# The Qwen byte-BPE ranks are in this wheel.
"${pip[@]}" --no-deps 'dashscope>=2.0,<2.1'
# OCR with its weights (those of 3.9 and later see text in photos that hold none). Its dependencies
# are in the extra `prepare`, but for an OpenCV that needs a display.
"${pip[@]}" --no-deps 'rapidocr>=3.8.4,<3.9'
say "installed; try: $venv/bin/emu3 --help"
command -v nvcc >/dev/null || say "without nvcc (the CUDA toolkit), make test compiles csrc/ by g++ only"
if missing=$(system_packages | tr '\n' ' ') && [ -n "$missing" ]; then
  say "tests of the CUDA kernels are skipped without ${missing% }: $(apt_install "${missing% }")"
fi
