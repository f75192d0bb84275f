"""Questions about handwritten digits: all of examples/dialogues/run-digits.sh, with its time."""

import argparse
import json
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
    given = parser.parse_args()
    machine = harness.describe_machine()
    with tempfile.TemporaryDirectory() as folder:
        found = run(Path(folder))
    row = {"case": "examples/dialogues/run-digits.sh", **found}
    given.json.write_text(json.dumps({**machine, "rows": [row]}, indent=2) + "\n")
    print(json.dumps(row, indent=2))


def run(folder: Path) -> dict[str, Any]:
    """Seconds, and what the model answers about pictures that it has not seen."""
    start = time.perf_counter()
    subprocess.run(["bash", SCRIPT], cwd=folder, check=True)
    seconds = round(time.perf_counter() - start, 1)
    answers = json.loads((folder / "runs" / "digits" / "answers.json").read_text())
    return {"seconds": seconds, **answers}


if __name__ == "__main__":
    main()
