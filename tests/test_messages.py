"""No message advises to delete what may be the only copy of something."""

import ast
import re
from pathlib import Path

import pytest

import emu3_megatron

PACKAGE = Path(emu3_megatron.__file__).parent
DELETING = re.compile(r"\b(remove|delete|erase|rm)\b", re.IGNORECASE)


def messages():
    """Every string of a `raise` or `print`, with where it stands."""
    for file in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            said = isinstance(node, ast.Raise) or (
                isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print"
            )
            for part in ast.walk(node) if said else ():
                if isinstance(part, ast.Constant) and isinstance(part.value, str):
                    yield f"{file.relative_to(PACKAGE)}:{part.lineno}", part.value


def test_no_message_advises_to_delete():
    assert [at for at, text in messages() if DELETING.search(text)] == []


@pytest.mark.parametrize("advice", ["choose another, or remove it", "delete it"])
def test_such_advice_would_be_found(advice):
    assert DELETING.search(advice)
