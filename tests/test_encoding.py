"""Text is read and written in UTF-8, whatever the locale.

Ruff's PLW1514 refuses what it knows to be a file or a path; here every call is seen whose name says
that it opens text.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("emu3_megatron", "kernels", "tools", "benchmarks", "examples", "tests")
PROCESSES = ("run", "Popen", "check_output")
# How many arguments come before the encoding.
BEFORE = {"read_text": 0, "write_text": 1, "TextIOWrapper": 1}
# What has a method `open` that gives bytes.
OTHERS = {"self", "content", "source"}


def without_encoding(source: str) -> Iterator[ast.Call]:
    """Calls that read or write text in the locale's encoding."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            given = {keyword.arg: keyword.value for keyword in node.keywords}
            if "encoding" not in given and None not in given and opens_text(node, given):
                yield node


def opens_text(call: ast.Call, given: dict[str | None, ast.expr]) -> bool:
    method = call.func.attr if isinstance(call.func, ast.Attribute) else None
    name = method or (call.func.id if isinstance(call.func, ast.Name) else None)
    if name in PROCESSES:
        return "text" in given or "universal_newlines" in given
    if name in BEFORE:
        return len(call.args) <= BEFORE[name]
    if name == "open" and method and not call.args and "mode" not in given:
        owner = call.func.value
        return not isinstance(owner, ast.Call) and getattr(owner, "id", None) not in OTHERS
    if name in ("open", "fdopen", "NamedTemporaryFile"):
        return is_text(call, given, first=0 if method == "open" or "Named" in name else 1)
    return False


def is_text(call: ast.Call, given: dict[str | None, ast.expr], first: int) -> bool:
    """Whether a mode, the argument at place `first`, is one of text."""
    mode = given.get("mode", call.args[first] if len(call.args) == first + 1 else None)
    if mode is None:
        return first == 1 and len(call.args) == 1
    is_mode = isinstance(mode, ast.Constant) and set(str(mode.value)) <= set("rwaxt+")
    return is_mode and isinstance(mode.value, str)


def test_files_and_processes_are_opened_with_an_encoding() -> None:
    found = []
    for path in (path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))):
        calls = without_encoding(path.read_text(encoding="utf-8"))
        found += [f"{path.relative_to(ROOT)}:{call.lineno}" for call in calls]

    assert not found, f"give encoding='utf-8' in {', '.join(found)}"


def test_what_the_rule_sees() -> None:
    faults = (
        'a.read_text(); a.write_text(x); (a / "b").open(); a.open("w"); open(a); run(b, text=1)'
    )
    right = 'a.open("rb"); open(a, "wb"); content.open(); zip.open("a.npy", "w"); Model(text="a")'

    assert len(list(without_encoding(faults))) == 6
    assert not list(without_encoding(right))
