"""Questions about handwritten digits: all of examples/dialogues/run-digits.sh, with its time.

python benchmarks/digits.py --json FILE [--seeds 0 1 ...] [--picture FILE]
"""

import argparse
import json
import resource
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import harness

SCRIPT = Path(__file__).parents[1] / "examples" / "dialogues" / "run-digits.sh"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", type=Path, required=True, help="file to write")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the training")
    parser.add_argument("--picture", type=Path, help="PNG of the first seed's answers to write")
    given = parser.parse_args()
    machine = harness.describe_machine()  # before this adds files to the working tree
    rows: list[dict[str, Any]] = []
    for seed in given.seeds:
        with tempfile.TemporaryDirectory() as folder:
            rows.append({"case": "examples/dialogues/run-digits.sh", **run(Path(folder), seed)})
            if given.picture and seed == given.seeds[0]:
                shutil.copy(Path(folder, "runs", "digits", "answers.png"), given.picture)
        print(json.dumps(rows[-1], indent=2), flush=True)
        text = json.dumps({**machine, "rows": rows}, indent=2)
        given.json.write_text(text + "\n", encoding="utf-8")


def run(folder: Path, seed: int) -> dict[str, Any]:
    """Seconds, and what the model answers about pictures that it has not seen.

    `cpu_seconds` are those of all processes: they say more where other work runs beside.
    """
    start, cpu = time.perf_counter(), _cpu_seconds()
    subprocess.run(["bash", SCRIPT, f"run.seed={seed}"], cwd=folder, check=True)
    seconds, cpu_seconds = time.perf_counter() - start, _cpu_seconds() - cpu
    answers = json.loads((folder / "runs" / "digits" / "answers.json").read_text(encoding="utf-8"))
    return {
        "seed": seed,
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu_seconds, 1),
        **answers,
    }


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
