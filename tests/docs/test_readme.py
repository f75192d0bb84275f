"""What the README says is there, is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def test_every_module_has_its_line_in_the_tree() -> None:
    tree = README.split("## The tree")[1].split("```")[1]
    tracked = [*(ROOT / "emu3_megatron").rglob("*.py"), *(ROOT / "kernels").rglob("*.py")]
    names = {path.name for path in tracked if not path.name.startswith("__")}
    assert names - set(re.findall(r"\w+\.py", tree)) == set()


@pytest.mark.parametrize("link", re.findall(r"\]\(((?!http)[^)#]+)\)", README))
def test_links_lead_somewhere(link: str) -> None:
    assert (ROOT / link).exists()


def test_ci_runs_the_readmes_test_command() -> None:
    assert "make test" in (ROOT / ".ci" / "run").read_text()
