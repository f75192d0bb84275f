"""Writes the list of all modules in docs/architecture.md from their first docstring lines.

python tools/architecture.py
"""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- modules -->", "<!-- end of modules -->"
FOLDERS = {
    "emu3_megatron": ["**/*.py"],
    "kernels": ["**/*.py"],
    "csrc": ["*.h", "*.cuh", "*.cu"],
    "benchmarks": ["*.py"],
    "tools": ["**/*.py", "*.sh", "*.slurm"],
}


def with_modules(page: str) -> str:
    """The page with the modules of today between the markers."""
    before, _, rest = page.partition(BEGIN)
    after = rest.partition(END)[2]
    return f"{before}{BEGIN}\n\n{list_of_modules()}\n{END}{after}"


def list_of_modules() -> str:
    """Of every folder its line and those of its files, by path."""
    by_folder: dict[Path, list[Path]] = {}
    for name, patterns in FOLDERS.items():
        files = {path for pattern in patterns for path in (ROOT / name).glob(pattern)}
        for path in sorted(files, key=lambda path: (path.parent, path.name)):
            by_folder.setdefault(path.parent, []).append(path)
    return "\n".join(_section(folder, files) for folder, files in by_folder.items())


def _section(folder: Path, files: list[Path]) -> str:
    lines = [f"### {folder.relative_to(ROOT)}/", ""]
    for path in files:
        if path.name == "__init__.py":  # sorted before the others
            lines += [first_line(path), ""]
        else:
            lines.append(f"- `{path.relative_to(ROOT)}`: {first_line(path)}")
    return "\n".join([*lines, ""])


def first_line(path: Path) -> str:
    """What a file says of itself: its first docstring line, or the sentence it begins with.

    Raises:
        SystemExit: it says nothing.
    """
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        words = (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]
    else:
        words = _comment(text).partition(". ")[0].rstrip(".") + "."
    if len(words) < 2:
        raise SystemExit(f"{path}: begin it with a line that says what it does")
    return words


def _comment(text: str) -> str:
    """The comment that a file begins with, in one line."""
    words = []
    for line in text.removeprefix("#!/usr/bin/env bash\n").splitlines():
        marker, _, said = line.partition(" ")
        if marker not in ("#", "//"):
            break
        words.append(said)
    return " ".join(words)


if __name__ == "__main__":
    PAGE.write_text(with_modules(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
