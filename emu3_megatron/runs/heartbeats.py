"""Reads heartbeats, and finds the rank that the others wait for."""

import json
from pathlib import Path
from typing import Any

FOLDER = "ranks"


def read_heartbeats(folder: Path) -> list[dict[str, Any]]:
    """The last heartbeat of every rank, with `age` in seconds against the freshest one."""
    beats = []
    for path in sorted((folder / FOLDER).glob("*.json")):
        try:
            beats.append(
                {**json.loads(path.read_text(encoding="utf-8")), "written": path.stat().st_mtime}
            )
        except (OSError, ValueError):  # being replaced
            continue
    # Ranks of an earlier, larger job are none of this one's.
    newest = max(beats, key=lambda beat: beat["written"], default={"ranks": 0, "written": 0})
    return [
        {**beat, "age": newest["written"] - beat["written"]}
        for beat in beats
        if beat["rank"] < newest["ranks"]
    ]


def gets_on(beat: dict[str, Any], limit: float) -> bool:
    """Whether a rank has left a mark of progress within the last `limit` seconds."""
    return beat["age"] + beat.get("for_seconds", 0.0) < limit


def diagnosis(beats: list[dict[str, Any]]) -> str:
    """Which rank the others wait for, in words.

    A rank that never beat is late, or one that no longer beats; else one behind in steps; else one
    that is in no collective while others are in one.
    """
    if not beats:
        return "no rank's heartbeat can be read"
    unseen = sorted(set(range(beats[0]["ranks"])) - {beat["rank"] for beat in beats})
    if unseen:
        ranks = ", ".join(str(rank) for rank in unseen[:8])
        return f"{len(unseen)} of {beats[0]['ranks']} ranks never started: {ranks}"
    silent = [beat for beat in beats if beat["age"] > 3 * beat["interval"]]
    first_step = min(beat["step"] for beat in beats)
    behind = [beat for beat in beats if beat["step"] == first_step]
    outside = [beat for beat in behind if beat["collective"] is None]
    late = silent or (behind if len(behind) < len(beats) else outside)
    if not late:
        return f"all {len(beats)} ranks wait in step {first_step}; {_describe(beats[0])}"
    return "; ".join(_describe(beat) for beat in late[:4])


def _describe(beat: dict[str, Any]) -> str:
    silence = f", silent for {beat['age']:.0f} seconds" if beat["age"] > beat["interval"] else ""
    inside = f" in {beat['collective']}" if beat["collective"] else ""
    return (
        f"rank {beat['rank']} (tensor {beat['tensor']}, context {beat['context']}, data "
        f"{beat['data']}; process {beat['pid']} on {beat['host']}) is late: step {beat['step']}, "
        f"{beat['phase']}{inside} at {beat['line']}{silence}"
    )
