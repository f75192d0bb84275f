"""Trains two commits alike on this machine and compares every logged number bit for bit.

    python tools/same_losses.py BASE HEAD

A refactor must leave losses identical: this trains a small recipe that is never shipped at both
commits (one process, TP 2 x CP 2, DP 2 with the distributed optimizer in bf16, stop and resume) and
compares losses, gradient norms and class means of every step. Packs are written once, by BASE.
Results are kept under build/same_losses/, so that a second comparison trains only what is new.

Exit status: 0 if all numbers are equal, 1 if any differs.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
WORK = ROOT / "build" / "same_losses"
STEPS = 12
# Times differ between any two runs.
TIMES = ("seconds", "tokens_per_second", "memory", "mfu")

RECIPE: dict[str, Any] = {
    "model": {"preset": "emu3-tiny", "hidden": 32, "ffn": 64, "codes": 600, "dropout": 0.1},
    "batch": {"size": 8, "micro_size": 2},
    "optimizer": {"lr": 1e-2, "schedule": {"warmup_steps": 2}},
    "precision": "fp32",
}
# Name: processes, overrides of one start after another.
CASES: dict[str, tuple[int, list[list[str]]]] = {
    "one process": (1, [[]]),
    "TP 2 x CP 2": (4, [["parallel.tensor=2", "parallel.context=2", "parallel.sequence=true"]]),
    "DP 2, bf16": (2, [["parallel.distributed_optimizer=true", "precision=bf16"]]),
    "resume": (1, [[f"run.stop_after={STEPS // 2}"], []]),
}

MAKE_PACKS = "import sys; sys.path.insert(0, 'tests'); from pathlib import Path; " + (
    "from support.tiny import make_packs; make_packs(Path(sys.argv[1]))"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base", metavar="BASE", help="commit that is right")
    parser.add_argument("head", metavar="HEAD", help="commit to compare")
    parsed = parser.parse_args()
    base, head = (_commit(name) for name in (parsed.base, parsed.head))
    data = WORK / f"data-{base[:12]}"
    if not (data / "tiny.pack").is_dir():
        data.mkdir(parents=True, exist_ok=True)
        _python(base, ["-c", MAKE_PACKS, str(data)])
    differs = False
    for case in CASES:
        rows = [_rows(commit, case, data) for commit in (base, head)]
        found = _difference(*rows)
        differs |= found is not None
        print(f"{case}: {found or f'{len(rows[0])} steps, all numbers equal'}", flush=True)
    sys.exit(differs)


def _commit(name: str) -> str:
    done = subprocess.run(
        ["git", "rev-parse", f"{name}^{{commit}}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    if done.returncode:
        sys.exit(f"same_losses: {name}: no such commit")
    return done.stdout.strip()


def _rows(commit: str, case: str, data: Path) -> list[dict[str, Any]]:
    """The logged numbers of every step."""
    folder = WORK / f"{commit[:12]}-on-{data.name}" / case.replace(" ", "-").replace(",", "")
    finished = folder / "finished"
    if not finished.exists():
        subprocess.run(["rm", "-rf", str(folder)], check=True)
        folder.mkdir(parents=True)
        processes, starts = CASES[case]
        recipe = _write_recipe(commit, folder, data)
        launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
        for overrides in starts:
            command = ["-m", "emu3_megatron", "train", str(recipe), *overrides]
            _python(commit, command if processes == 1 else [*launcher, *command])
        finished.touch()
    lines = (folder / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def _write_recipe(commit: str, folder: Path, data: Path) -> Path:
    values: dict[str, Any] = {**RECIPE, "run": {"dir": str(folder / "run"), "steps": STEPS}}
    values["run"] |= {"log_every": 1, "seed": 3}
    sources = [{"pack": str(data / "tiny.pack")}]
    values["data"] = {"context": 128, "sources": sources, "workers": 0}
    known = _checkout(commit) / "emu3_megatron" / "config"
    if any("null_prompt" in path.read_text(encoding="utf-8") for path in known.rglob("*.py")):
        values["data"]["null_prompt"] = 0
    if not (known / "schedule.py").exists():
        values["optimizer"] = {"lr": RECIPE["optimizer"]["lr"], **RECIPE["optimizer"]["schedule"]}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def _python(commit: str, arguments: list[str]) -> None:
    """Run Python on the packages of a commit, one thread a process."""
    tree = _checkout(commit)
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree / ".packages"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    if done.returncode:
        sys.exit(f"same_losses: {commit[:12]}: {' '.join(arguments)} failed\n{done.stderr[-3000:]}")


def _checkout(commit: str) -> Path:
    """A worktree of the commit, its packages under the names that they import as."""
    tree = WORK / "trees" / commit[:12]
    if not tree.exists():
        subprocess.run(
            ["git", "worktree", "add", "--detach", "--quiet", str(tree), commit],
            cwd=ROOT,
            check=True,
        )
        packages = tree / ".packages"
        packages.mkdir()
        (packages / "emu3_megatron").symlink_to(tree / "emu3_megatron")
        (packages / "emu3_kernels").symlink_to(tree / "kernels")
    return tree


def _difference(base: list[dict[str, Any]], head: list[dict[str, Any]]) -> str | None:
    """The first number that is not the same, in words."""
    if len(base) != len(head):
        return f"DIFFERS: {len(base)} rows against {len(head)}"
    for old, new in zip(base, head, strict=True):
        if "loss" not in old.keys() & new.keys():
            return f"DIFFERS at step {old['step']}: a row without a loss"
        for name in sorted(old.keys() & new.keys()):
            if not any(word in name for word in TIMES) and old[name] != new[name]:
                return f"DIFFERS at step {old['step']}: {name} {old[name]!r} against {new[name]!r}"
    return None


if __name__ == "__main__":
    main()
