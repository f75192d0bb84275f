"""The section of docs/performance.md on compiled kernels, from the JSON of compiled.py."""

from typing import Any

from table_text import RESULTS, load, table


def compiled_section() -> str:
    text = (
        "Triton's kernels at stage 1's heads (8 over 2 of 128, bf16), compiled for `sm_90` without "
        "a GPU: registers of a thread, programs that fit a multiprocessor, instructions of the hot "
        "loop, copies in it of 128 bits and of fewer, spills in loops (`python "
        "benchmarks/compiled.py`). Before: commit `65767b7`. Not measured on a GPU."
    )
    lines, uses = [], []
    for path in sorted(RESULTS.glob("compiled_triton*.json")):
        before = {row["case"]: row for row in load(path.stem.replace("_", "_before_", 1))["rows"]}
        for row in load(path.stem)["rows"]:
            if row["case"].startswith("use/"):
                uses.append(row)
            else:
                lines.append(_compiled_line(row, before.get(row["case"])))
    heads = ["kernel", "compiler", "registers", "a processor", "loop", "copies", "spills", "HGMMA"]
    use = (
        "How programs fill 132 multiprocessors, replayed heaviest first: work over the time of the "
        "last to end, over the tiles of the context parallel rank with the least. `parts` are "
        "programs that share a block of keys in dk/dv, at most."
    )
    use_heads = ["recipe", "heads", "forward", "dq", "dk/dv before", "dk/dv", "parts"]
    filled = [
        [
            row["case"].removeprefix("use/"),
            f"{row['heads']}/{row['kv_heads']}",
            *(f"{row[k]:.2f}" for k in ("forward_use", "dq_use", "dkdv_use_unsplit", "dkdv_use")),
            str(row["parts"]),
        ]
        for row in {row["case"]: row for row in uses}.values()
    ]
    tables = [table(heads, lines), use, table(use_heads, filled)]
    return "\n\n".join(["## Compiled kernels", text, *tables])


def _compiled_line(row: dict[str, Any], before: dict[str, Any] | None) -> list[str]:
    """Counts, with those of before in front where they were others."""

    def cell(name: str) -> str:
        old = before[name] if before else row[name]
        return f"{row[name]}" if old == row[name] else f"{old} → {row[name]}"

    copies = _copies(row)
    if before and before["async_copies_narrow"] != row["async_copies_narrow"]:
        copies = f"{_copies(before)} → {copies}"
    return [
        row["case"],
        row["implementation"],
        cell("registers"),
        cell("blocks_per_sm"),
        cell("loop_instructions"),
        copies,
        cell("spills_in_loops"),
        ", ".join(row["products"]),
    ]


def _copies(row: dict[str, Any]) -> str:
    return f"{row['async_copies_128']} + {row['async_copies_narrow']}"
