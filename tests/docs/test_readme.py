"""What the README says is there, is there."""

import re
import tomllib

import pytest
from support.documented import ROOT, Source, sources

README = Source("README.md").text
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PAGES = [source for source in sources() if not source.is_script]


def rows_below(head: str) -> str:
    return README.split(head)[1].split("\n\n")[0]


def test_every_package_has_its_row():
    folder = ROOT / "emu3_megatron"
    entries = [path for path in folder.iterdir() if not path.name.startswith("__")]
    names = {f"`{p.stem}`" for p in entries if p.suffix == ".py" or list(p.glob("*.py"))}

    assert names - set(re.findall(r"`\w+`", rows_below("| package | what it is for |"))) == set()


def test_every_dependency_has_its_row():
    extras = PROJECT["optional-dependencies"]
    wanted = [*PROJECT["dependencies"], *(name for extra in extras.values() for name in extra)]
    names = {re.match(r"[\w.-]+", requirement).group() for requirement in wanted}
    rows = rows_below("| dependency | what it does here |")

    assert {n for n in names if not re.search(rf"\b{re.escape(n)}\b", rows)} <= {"emu3-megatron"}
    assert {extra for extra in extras if f"extra `{extra}`" not in rows} == set()


def test_the_pythons_that_it_names_are_those_of_the_package():
    classifiers = " ".join(PROJECT["classifiers"])
    versions = re.findall(r":: (3\.\d+)", classifiers)

    assert f"Python {versions[0]} to {versions[-1]}" in README


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.path)
def test_links_lead_somewhere(page):
    folder = (ROOT / page.path).parent
    for link in re.findall(r"\]\(((?!http)[^)#]+)", page.text):
        assert (folder / link).exists(), link


def test_ci_runs_the_readmes_test_command():
    assert "make test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
