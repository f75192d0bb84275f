"""docs/architecture.md shows the packages, interfaces and modules that there are."""

import re
import runpy
from pathlib import Path

import yaml
from support.documented import ROOT, blocks
from support.tiny import tiny_recipe
from test_imports import ALLOWED, OPEN, PACKAGES

PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
SCRIPT = runpy.run_path(str(ROOT / "tools" / "architecture.py"))
EXTENSIONS = (ROOT / "tests" / "support" / "extensions.py").read_text(encoding="utf-8")


def table(page: str, head: str) -> list[list[str]]:
    """The cells of the rows below a head."""
    rows = page.split(head)[1].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def test_the_list_of_modules_is_what_the_script_writes():
    assert SCRIPT["with_modules"](PAGE) == PAGE, "run python tools/architecture.py"


def test_the_table_of_packages_is_that_of_the_imports():
    named = lambda cell: set(re.findall(r"`(\w+)`", cell))
    rows = table(PAGE, "| package | holds | may import |")

    shown = {package: named(imports) for (package,), imports in ((named(r[0]), r[2]) for r in rows)}

    assert shown == {name: ALLOWED[name] for name in [*PACKAGES, "emu3_kernels"]}
    (sentence,) = re.findall(r"what those may import; (.*?) are open to all", PAGE, re.DOTALL)
    assert named(sentence) == OPEN


def test_the_interfaces_are_where_the_table_says():
    for interface, _, file, *_ in table(PAGE, "| interface | what it does |"):
        module = ROOT / "emu3_megatron" / file.strip("`")
        assert f"class {interface.strip('`')}" in module.read_text(encoding="utf-8")


def test_the_example_is_the_code_that_tests_run():
    (example,) = blocks(PAGE, "python")

    assert example in EXTENSIONS


def test_the_recipe_of_the_example_is_one():
    (sections,) = blocks(PAGE, "yaml")

    recipe = tiny_recipe(Path("a.pack"), Path("run"), **yaml.safe_load(sections))

    assert recipe.hooks[0].decay == 0.8
