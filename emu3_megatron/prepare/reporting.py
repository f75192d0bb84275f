"""The report on a prepared folder: what was kept, what was set aside and why, and the times."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from emu3_megatron.errors import InputError
from emu3_megatron.files import write_json
from emu3_megatron.media.files import line_of_left_out
from emu3_megatron.prepare.origins import Counts, origins_of
from emu3_megatron.prepare.progress import Progress
from emu3_megatron.prepare.tables import read_table
from emu3_megatron.prepare.text_filters import line_of_masked
from emu3_megatron.prepare.workspace import MANIFEST, read_manifest

REPORT = "report.json"
_SHOWN = 20  # sources of a kind


def report(out: Path) -> dict[str, Any]:
    """What a prepared folder holds, from what its runs have recorded; nothing is computed anew.

    Raises:
        InputError: the folder holds no prepared data.
    """
    manifest, progress = read_manifest(out), Progress(out).read()
    if manifest is None and not progress["kinds"]:
        raise InputError(f"{out}: holds no prepared data; name the `out` of a prepare recipe")
    manifest = manifest or {"kinds": {}, "packs": []}
    # Earlier versions recorded no progress, and wrote the manifest's packs last.
    finished = progress["finished"] or not progress["kinds"]
    return {
        "finished": finished,
        "unfinished_kinds": [] if finished else progress["kinds"],
        "kinds": {kind: _kind(out, kind, entry) for kind, entry in manifest["kinds"].items()},
        "packs": manifest["packs"],
        "stages": progress["stages"],
    }


def write_report(out: Path) -> dict[str, Any]:
    """Write the report beside the manifest, and return it. Raises InputError as `report` does."""
    found = report(out)
    write_json(out / REPORT, found)
    return found


def _kind(out: Path, kind: str, entry: dict[str, Any]) -> dict[str, Any]:
    origins = entry.get("origins")
    if kind != "text":
        rows = read_table(out / f"{kind}.parquet")
        origins = origins_of((str(row["source"]), bool(row["kept"])) for row in rows)
    return {
        "found": entry["found"],
        "kept": entry["kept"],
        **({"held_out": entry["held_out"]["kept"]} if "held_out" in entry else {}),
        "set_aside": {why: number for why, number in entry["set_aside"].items() if number},
        "left_out": entry.get("left_out", {}),
        **({"masked": entry["masked"]} if "masked" in entry else {}),
        "documents": sum(shard["documents"] for shard in entry["shards"]),
        "tokens": sum(shard["tokens"] for shard in entry["shards"]),
        **(origins or {"by_suffix": {}, "by_source": {}}),
    }


def lines_of(out: Path, found: dict[str, Any]) -> list[str]:
    """A report as tables for the terminal."""
    state = "finished" if found["finished"] else "not finished"
    lines = [f"{out}: {state}"]
    if found["unfinished_kinds"]:
        kinds = ", ".join(found["unfinished_kinds"])
        lines.append(
            f"the last run, of {kinds}, has not ended: the same command goes on; what follows is "
            f"of {MANIFEST}, and the times so far"
        )
    for kind, about in found["kinds"].items():
        lines += ["", *_lines_of_kind(kind, about)]
    if stages := found["stages"]:
        rows = [
            [name, f"{about['seconds']:,.1f}", f"{about['done']:,}", about["unit"]]
            for name, about in stages.items()
        ]
        lines += ["", *_table(["stage", "seconds", "done", "of"], rows)]
    lines += ["", f"machine-readable: {out / REPORT}"]
    return lines


def _lines_of_kind(kind: str, about: dict[str, Any]) -> list[str]:
    lines = [
        f"{kind}: {about['kept']:,} of {about['found']:,} kept, {about['documents']:,} documents, "
        f"{about['tokens']:,} tokens"
        + (f"; {about['held_out']:,} held out" if "held_out" in about else "")
    ]
    if about["set_aside"]:
        rows = [[why, f"{number:,}"] for why, number in about["set_aside"].items()]
        lines += _table(["set aside", "items"], rows)
    if left_out := line_of_left_out(about["left_out"]):
        lines.append(f"  files left out by their suffix: {left_out}")
    if masked := line_of_masked(about.get("masked", {})):
        lines.append(f"  masked: {masked}")
    for title, counts in (("suffix", about["by_suffix"]), ("source", about["by_source"])):
        lines += _table([title, "found", "kept"], _ranked(counts)) if counts else []
    return lines


def _ranked(counts: Counts) -> list[list[str]]:
    """The largest first; those that are not shown in one row."""
    ranked = sorted(counts.items(), key=lambda pair: (-pair[1]["found"], pair[0]))
    total: Counter[str] = Counter()
    for _, others in ranked[_SHOWN:]:
        total.update(others)
    if total:
        ranked = [*ranked[:_SHOWN], (f"{len(ranked) - _SHOWN:,} others", dict(total))]
    return [[name, f"{c['found']:,}", f"{c['kept']:,}"] for name, c in ranked]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    return [
        "  " + "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])])
        for row in (head, *rows)
    ]
