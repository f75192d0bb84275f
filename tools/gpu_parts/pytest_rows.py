"""A plugin of pytest that writes a row for each test, as benchmarks do: `--rows FILE`."""

import json
from pathlib import Path
from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rows", type=Path, help="write outcomes and seconds to this file")


def pytest_configure(config: pytest.Config) -> None:
    if path := config.getoption("--rows"):
        config.pluginmanager.register(Rows(path))


class Rows:
    """The rows so far, in the file after every test."""

    def __init__(self, path: Path):
        self.path = path
        self.rows: list[dict[str, Any]] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and report.passed:
            return
        row = {"case": report.nodeid, "outcome": report.outcome, "seconds": report.duration}
        if not report.passed:
            row["reason"] = report.longreprtext.strip()[-1000:]
        self.rows.append(row)
        self.path.write_text(json.dumps({"rows": self.rows}, indent=1) + "\n", encoding="utf-8")
