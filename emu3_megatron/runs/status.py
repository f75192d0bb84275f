"""`emu3 status`: where a run is, from the files in its folder alone."""

import json
from pathlib import Path
from typing import Any

from emu3_megatron.errors import InputError
from emu3_megatron.runs.events import read_events
from emu3_megatron.runs.heartbeats import diagnosis, read_heartbeats
from emu3_megatron.runs.lock import read_holder


def status(folder: Path) -> list[str]:
    """Lines for a person.

    Raises:
        InputError: the folder is no run's.
    """
    description = folder / "run.json"
    if not description.is_file():
        raise InputError(f"{folder}: no run here, run.json is missing; give a recipe's run.dir")
    about = json.loads(description.read_text(encoding="utf-8"))
    rows = _rows(folder / "metrics.jsonl")
    events = read_events(folder)
    return [
        f"{folder}: {_life(folder, events)}",
        *_progress(rows, about["recipe"]["run"]["steps"]),
        *([f"loss terms: {', '.join(about['terms'])}"] if "terms" in about else []),
        _checkpoints(folder, events),
        *_troubles(events),
        *_machines(events),
        *_ranks(folder),
    ]


def _rows(path: Path) -> list[dict[str, Any]]:
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:  # being written
            continue
    return rows


def _life(folder: Path, events: list[dict[str, Any]]) -> str:
    holder = read_holder(folder)
    if holder is None:
        last = events[-1] if events else {}
        if last.get("event") == "left":
            return f"not running; {last.get('why', 'told to leave')}, start it again"
        if last.get("event") == "failed":
            return f"not running; {_failure(events)}"
        return "not running"
    where = f"process {holder['pid']} on {holder['host']}"
    if holder["alive"]:
        heard = "" if holder["seen"] else f", heard of {max(holder['age'], 0):.0f} seconds ago"
        return f"running, {where}{heard}"
    return f"dead: {where} left without saying so"


def _failure(events: list[dict[str, Any]]) -> str:
    """How the last start of a run failed: others follow the rank that was the first to."""
    job = events[-1].get("job")
    first = next(e for e in events if e["event"] == "failed" and e.get("job") == job)
    rank = f" on rank {first['rank']}" if first.get("rank") else ""
    return f"failed in step {first['step']:,}{rank}: {first['why'].splitlines()[0]}"


def _progress(rows: list[dict[str, Any]], steps: int) -> list[str]:
    if not rows:
        return [f"step: none logged yet, of {steps:,}"]
    last = next((row for row in reversed(rows) if "lr" in row), rows[-1])
    line = f"step: {last['step']:,} of {steps:,}"
    if "step_seconds" in last:
        left = (steps - last["step"]) * last["step_seconds"]
        line += f"; {last['step_seconds']:.3g} s a step, {_duration(left)} left"
    loss = f"{last['loss']:.4f}" if "loss" in last else "not finite"
    rate = f"{last['tokens_per_second']:,.0f} tokens a second"
    return [line, f"loss: {loss}; {rate}"]


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = ((days, "d"), (hours, "h"), (minutes, "min"), (seconds, "s"))
    return " ".join([f"{value} {unit}" for value, unit in parts if value][:2]) or "none"


def _checkpoints(folder: Path, events: list[dict[str, Any]]) -> str:
    tracker = folder / "checkpoints" / "latest"
    if not tracker.is_file():
        return "last durable checkpoint: none"
    durable = int(tracker.read_text(encoding="utf-8").strip().removeprefix("step-"))
    line = f"last durable checkpoint: step {durable:,}"
    saves = [e for e in events if e["event"] in ("requested", "durable", "save failed")]
    if saves and saves[-1]["event"] != "durable":
        line += f"; {saves[-1]['event']} at step {saves[-1]['step']:,}"
    return line


def _troubles(events: list[dict[str, Any]]) -> list[str]:
    lines = []
    for kind in (
        "skipped",
        "rolled back",
        "save failed",
        "replicas differ",
        "gave up",
        "unusable file",
        "no lower loss",
        "writer failed",
        "nothing trained",
        "not written",
    ):
        steps = [str(event["step"]) for event in events if event["event"] == kind]
        if steps:
            shown = ", ".join(steps[-5:])
            lines.append(f"{kind}: {len(steps)} times, last at step {shown}")
    return lines


def _machines(events: list[dict[str, Any]]) -> list[str]:
    """What the last start found of its GPUs, and the last rank that the others waited for."""
    starts = [i for i, event in enumerate(events) if event["event"] == "health"]
    since = events[max(starts, default=0) :]
    lines = [
        f"unhealthy: GPU of rank {event['rank']} on {event['host']}: {event['why']}"
        for event in since
        if event["event"] == "unhealthy"
    ]
    slow = [event for event in since if event["event"] == "slow rank"]
    return lines + [f"slow {event['why']}, since step {event['step']:,}" for event in slow[-1:]]


def _ranks(folder: Path) -> list[str]:
    beats = [beat for beat in read_heartbeats(folder) if beat["state"] == "running"]
    silent = [beat for beat in beats if beat["age"] > 3 * beat["interval"]]
    return [f"ranks: {diagnosis(beats)}"] if silent else []
