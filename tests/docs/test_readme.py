"""What the README says is there, is there."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
from support.command_line import parse

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


def emu3_lines() -> list[str]:
    """The `emu3 …` commands of the code blocks, continued lines joined, comments cut."""
    blocks = "\n".join(README.split("```bash")[1:]).replace("\\\n", " ")
    return re.findall(r"^emu3 ([^#\n]+)", blocks, re.MULTILINE)


@pytest.mark.parametrize("line", emu3_lines())
def test_commands_parse(line: str) -> None:
    parse(shlex.split(line))


@pytest.mark.parametrize("target", re.findall(r"^make (\w+)", README, re.MULTILINE))
def test_make_knows_the_commands(target: str) -> None:
    subprocess.run(["make", "--dry-run", target], cwd=ROOT, check=True, capture_output=True)


def test_ci_runs_the_readmes_test_command() -> None:
    assert "make test" in (ROOT / ".ci" / "run").read_text()
