"""Training steps of the vision tokenizer, beside this project's trainer before (commit 4da1a3a).

Both take the same samples at the same batch size with the same losses (L2, codebook, commitment)
and Adam, in processes of one thread that alternate; `samples_per_cpu_second` is the best of the
rounds. `ours, bf16` has the recipes' `precision: bf16`, for which a CPU needs AVX-512 BF16 to gain;
`muon` says what Muon adds to a step. Run it in a clone that has the old commit.

    python benchmarks/tokenizer_training.py --json FILE
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness import write_rows

OLD = "4da1a3a"
ROOT = Path(__file__).parents[1]
ROUNDS = 5
CASES = [
    ("64x64, batch 1", 64, 1, 24),
    ("64x64, batch 8", 64, 8, 6),
    ("128x128, batch 4", 128, 4, 4),
]

CHILD = """
import json, sys, time
import torch
torch.set_num_threads(1)
torch.manual_seed(0)
which, side, size, steps = sys.argv[1], *map(int, sys.argv[2:5])
pixels = [[torch.rand(3, side, side) * 2 - 1 for _ in range(size)] for _ in range(steps + 3)]
from pathlib import Path
import tempfile
from PIL import Image
folder = Path(tempfile.mkdtemp())
Image.new("RGB", (side, side)).save(folder / "a.png")
network = {"preset": "tiny"}
if which == "before":
    from emu3_megatron.config.tokenizer import TokenizerRecipe
    from emu3_megatron.tokenizer_training.trainer import TokenizerTrainer
    recipe = TokenizerRecipe.model_validate({
        "network": network, "data": {"images": folder, "area": side * side, "crop": None},
        "steps": 1000, "batch_size": size, "lr": 1e-4, "plain_steps": 1, "batch_norm_steps": 0,
        "revive_every": 1000,
    })
    trainer = TokenizerTrainer(recipe, folder, torch.device("cpu"))
    step = lambda number, batch: trainer.step(number, batch)["loss"]
else:
    from emu3_megatron import parallel
    from emu3_megatron.config.tokenizer_training import TokenizerRecipe
    from emu3_megatron.runs.interfaces import Verdict
    from emu3_megatron.tokenizer_training.building import build_trainer
    from emu3_megatron.tokenizer_training.samples import Sample, Samples
    optimizer = {"lr": 1e-4, "schedule": {"kind": "constant"}}
    if which == "muon":
        optimizer["muon"] = {}
    recipe = TokenizerRecipe.model_validate({
        "run": {"dir": folder / "run", "steps": 1000}, "network": network,
        "data": {"images": folder, "area": side * side, "crop": None}, "batch": {"size": size},
        "codebook": {"plain_steps": 1, "restart_after": 0}, "batch_norm_steps": 0,
        "optimizer": optimizer, "precision": "bf16" if which == "ours, bf16" else "fp32",
    })
    mesh = parallel.start()
    trainer = build_trainer(recipe, Samples(recipe.data, 0), mesh, lambda step, faults: None)
    def step(number, batch):
        samples = [Sample((number - 1) * size + i, one) for i, one in enumerate(batch)]
        return trainer.step(number, samples, lambda values: Verdict()).metrics["loss"]
for number in (1, 2, 3):
    step(number, pixels[number - 1])
began = time.process_time()
for number in range(4, steps + 4):
    loss = step(number, pixels[number - 1])
print(json.dumps({"seconds": time.process_time() - began, "loss": loss}))
"""


def main() -> None:
    write_rows(rows)


def rows(quick: bool) -> Iterator[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        old = _packages(_worktree(Path(folder) / "old"))
        ours = _packages(ROOT)
        trees = {"before": old, **dict.fromkeys(("ours", "ours, bf16", "muon"), ours)}
        for case, side, size, steps in CASES[: 1 if quick else None]:
            best: dict[str, float] = {}
            for _ in range(2 if quick else ROUNDS):
                for which, packages in trees.items():
                    seconds = _measure(packages, which, side, size, steps)
                    best[which] = max(best.get(which, 0), size * steps / seconds)
            for which, rate in best.items():
                faster = round(rate / best["before"], 2)
                yield {
                    "case": case,
                    "implementation": which,
                    "samples_per_cpu_second": round(rate, 2),
                    "faster": faster,
                }


def _worktree(folder: Path) -> Path:
    command = f"git -C {ROOT} archive {OLD} emu3_megatron kernels | tar -x -C {folder}"
    folder.mkdir()
    subprocess.run(command, shell=True, check=True)
    return folder


def _packages(tree: Path) -> Path:
    """A folder to import from: the packages of a tree by their names."""
    folder = Path(tempfile.mkdtemp())
    (folder / "emu3_megatron").symlink_to(tree / "emu3_megatron")
    (folder / "emu3_kernels").symlink_to(tree / "kernels")
    return folder


def _measure(packages: Path, which: str, side: int, size: int, steps: int) -> float:
    environment = {**os.environ, "PYTHONPATH": str(packages), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", CHILD, which, str(side), str(size), str(steps)]
    done = subprocess.run(
        command,
        env=environment,
        cwd=packages,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )
    return json.loads(done.stdout.splitlines()[-1])["seconds"]


if __name__ == "__main__":
    main()
