"""Every fault in docs/reliability.md names a test that exists."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROWS = [
    line
    for line in (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8").splitlines()
    if line.startswith("| ") and "megatron-core alone" not in line and line.count("|") == 5
]
FAULTS = [row for row in ROWS if "test" in row or "same" in row]


@pytest.mark.parametrize("row", FAULTS, ids=lambda row: row.split("|")[1].strip()[:40])
def test_a_row_names_tests_that_exist(row: str) -> None:
    named = row.split("|")[4]
    tests = "".join(
        path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py")
    )

    for name in re.findall(r"::(\w+)", named):
        assert f"def {name}(" in tests
    for file in re.findall(r"`(?:\.\./)?([\w/]*test_\w+\.py)", named):
        assert list((ROOT / "tests").rglob(file))
    assert re.search(r"::test_|test_\w+\.py|same|as above", named)
