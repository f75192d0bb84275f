# make demo | make test set everything up on a new machine: Python 3.11 to 3.13 is all they need.
# PYTHON=python3.12 asks for that one.
PYTHON ?=
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: install demo test test-slow lint csrc gpu gpu-check fresh clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml setup.py tools/install.sh
	PYTHON=$(PYTHON) bash tools/install.sh $(VENV)
	touch $@

demo: install
	$(BIN)/emu3 demo --out demo

# A worker for each core, as far as memory allows (tests/conftest.py); a file's tests stay together.
test: install lint
	$(BIN)/python -m pytest -n auto --dist loadfile

# Slurm's tests want Debian's slurm-wlm and munge, those of the voting page Chromium; they fail where
# it could be there and is not.
test-slow: install
	command -v slurmctld >/dev/null && command -v chromium >/dev/null || \
	    [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null || \
	    apt-get install --yes --quiet --no-install-recommends slurm-wlm munge chromium
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --editable '.[slow]'
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps 'vbench==0.1.5' 'lpips==0.1.4'
	$(BIN)/python -m pytest -m slow

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

csrc:
	$(MAKE) -C csrc

build/gpu/sanitized: tests/gpu/sanitized.cu csrc
	mkdir -p $(@D)
	$(or $(NVCC),nvcc) -std=c++17 -arch=sm_90 -Icsrc -o $@ $< kernels/lib/libemu3_kernels.so \
	    -Xlinker -rpath=$(CURDIR)/kernels/lib

# On a machine with an H100 or H200; tools/gpu.sh says what PART, PYTHON, WHEELS and OUT do.
gpu:
	bash tools/gpu.sh

# On any machine, before: whether WHEELS holds all that MACHINE, a list of packages, lacks.
gpu-check:
	$(or $(PYTHON),python3) tools/gpu_check.py "$(WHEELS)" "$(or $(MACHINE),tools/gpu-machine.txt)"

# make demo and make test in an empty Debian 13; as root. tools/fresh.sh says what FRESH_ROOT does.
fresh:
	bash tools/fresh.sh

clean:
	rm -rf $(VENV) demo build kernels/lib *.egg-info
