"""Compares the speed of data preparation with that of an earlier commit, run by run.

python benchmarks/preparing_before.py COMMIT [--repeats 5] --json FILE

Each run is a process of its own on that commit's packages, and the runs of both commits and of a
loop shaped like Megatron-LM's preprocess_data.py alternate, so that other work on the machine
slows all of them. A ratio is of medians; more than 1 says that this commit is faster.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
HERE, LOOP = "this commit", "loop like Megatron's"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("commit", metavar="COMMIT")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parsed = parser.parse_args()
    from harness import describe_machine

    with tempfile.TemporaryDirectory() as folder:
        before = f"commit {parsed.commit[:7]}"
        trees = {before: checkout(parsed.commit, Path(folder) / "before"), HERE: ROOT}
        rows = []
        for case in CASES:
            runs = [*trees, *([LOOP] if case == "text" else [])]
            times: dict[str, list[float]] = {name: [] for name in runs}
            for _ in range(parsed.repeats):
                for name in runs:
                    what = "loop" if name == LOOP else case
                    times[name].append(_measure(trees.get(name, ROOT), what))
            rows += [_row(case, name, times) for name in runs]
            print(*rows[-len(runs) :], sep="\n", flush=True)
            if parsed.json:
                text = json.dumps({**describe_machine(), "rows": rows}, indent=2)
                parsed.json.write_text(text + "\n", encoding="utf-8")


def _row(case: str, name: str, times: dict[str, list[float]]) -> dict[str, Any]:
    median = statistics.median(times[name])
    return {
        "case": case,
        "implementation": name,
        "median_seconds": median,
        "all_seconds": times[name],
        "speed_of_this_commit": median / statistics.median(times[HERE]),
    }


def checkout(commit: str, tree: Path) -> Path:
    """A copy of the commit's files, its packages under the names that they import as."""
    tree.mkdir()
    archive = subprocess.run(["git", "archive", commit], cwd=ROOT, capture_output=True, check=True)
    subprocess.run(["tar", "-x"], cwd=tree, input=archive.stdout, check=True)
    return tree


def _measure(tree: Path, case: str) -> float:
    """Seconds of one run on the packages of a checkout."""
    with tempfile.TemporaryDirectory() as folder:
        packages = Path(folder) / "packages"
        packages.mkdir()
        (packages / "emu3_megatron").symlink_to(tree / "emu3_megatron")
        (packages / "emu3_kernels").symlink_to(tree / "kernels")
        done = subprocess.run(
            [sys.executable, str(Path(__file__).resolve()), "--one", case, str(tree)],
            cwd=folder,  # a fork server imports from its working folder first
            env={**os.environ, "PYTHONPATH": str(packages), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            encoding="utf-8",
        )
    return float(done.stdout.splitlines()[-1])


def _one(case: str, tree: str) -> None:
    sys.path.insert(0, str(Path(tree) / "benchmarks"))
    import preparing_cases

    preparing_cases.HANDBOOKS = ROOT / "runs" / "data" / "text"
    with tempfile.TemporaryDirectory() as folder:
        run = CASES[case](preparing_cases, Path(folder))
        run()  # imports and the first use of everything are not timed
        start = time.perf_counter()
        run()
        print(time.perf_counter() - start)


def _text(cases: Any, folder: Path, loop: bool = False) -> Any:
    source = folder / "texts" / "a.jsonl"
    source.parent.mkdir()
    cases.write_texts(source, 12 * 10**7)
    if loop:
        return partial(cases._megatron_loop, source, folder / "loop")
    return partial(cases._our_text, source, folder / "ours")


def _photos(cases: Any, folder: Path) -> Any:
    (case,) = cases.photos(folder, 256)
    return case.run


def _shots(cases: Any, folder: Path) -> Any:
    case = next(case for case in cases.shots() if case.implementation == "emu3")
    return lambda: [case.run() for _ in range(4)]


CASES = {"text": _text, "photos": _photos, "shots": _shots}


if __name__ == "__main__":
    if sys.argv[1] == "--one":
        CASES["loop"] = partial(_text, loop=True)
        _one(*sys.argv[2:])
    else:
        main()
