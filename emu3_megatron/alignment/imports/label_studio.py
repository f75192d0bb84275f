"""Label Studio's JSON exports: results of its tags Pairwise and Ranker.

A task of Pairwise has the ids of its samples in its data, as `left` and `right`. Items of a
Ranker's list have the samples' ids as theirs; its buckets, if any, are named best and worst.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from emu3_megatron.alignment.imports.ballots import Ballot, best_and_worst, ranking
from emu3_megatron.errors import InputError


def is_export(record: Mapping[str, Any]) -> bool:
    """Whether a record is a task of Label Studio, of whatever version and form."""
    return bool({"annotations", "completions", "annotation_id"} & record.keys())


def ballots(tasks: Sequence[Mapping[str, Any]], file: str) -> Iterator[Ballot]:
    """What annotators said; cancelled annotations are passed over.

    Raises:
        InputError: an export of another form or version, or a result that cannot be read; with the
            number of the record.
    """
    for number, task in enumerate(tasks, 1):
        where = f"{file}: record {number}"
        if "completions" in task:
            raise InputError(
                f"{where}: exported by a Label Studio before 1.0; export with a newer one, as JSON"
            )
        if not isinstance(task.get("annotations"), list) or not isinstance(task.get("data"), dict):
            raise InputError(
                f"{where}: no annotations and data; export from Label Studio as JSON, not JSON-MIN"
            )
        for annotation in _records(task["annotations"], where):
            if not annotation.get("was_cancelled"):
                yield from _of_annotation(annotation, task["data"], where)


def _of_annotation(
    annotation: Mapping[str, Any], data: Mapping[str, Any], where: str
) -> Iterator[Ballot]:
    voter = _voter(annotation.get("completed_by"))
    for result in _records(annotation.get("result") or [], where):
        value = result.get("value")
        if not isinstance(value, dict):
            continue
        if result.get("type") == "pairwise":
            yield Ballot(where, voter, _pairwise(value, data, where))
        elif result.get("type") == "ranker":
            yield _ranker(value, result.get("from_name"), voter, where)


def _records(values: Any, where: str) -> list[dict[str, Any]]:
    if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
        raise InputError(f"{where}: annotations and results of another version of Label Studio")
    return values


def _voter(completed_by: Any) -> str:
    """An account's address or number, as the export has it."""
    if isinstance(completed_by, dict):
        completed_by = completed_by.get("email") or completed_by.get("id")
    return f"annotator-{completed_by}" if isinstance(completed_by, int) else str(completed_by)


def _pairwise(value: Mapping[str, Any], data: Mapping[str, Any], where: str) -> dict[str, float]:
    sides = [data.get("left"), data.get("right")]
    if not all(isinstance(side, str) for side in sides):
        raise InputError(
            f"{where}: the task's data need the ids of its samples, as left and right, 12-3 say"
        )
    selected = value.get("selected")
    if selected not in ("left", "right"):
        raise InputError(f"{where}: a Pairwise that selects {selected!r}, not left or right")
    better, worse = sides if selected == "left" else reversed(sides)
    return best_and_worst(where, [str(better)], [str(worse)])


def _ranker(value: Mapping[str, Any], name: Any, voter: str, where: str) -> Ballot:
    ranked = value.get("ranker")
    if isinstance(ranked, dict) and list(ranked) == [name]:  # newer versions name the tag
        ranked = ranked[name]
    if isinstance(ranked, list):
        return Ballot(where, voter, ranking(where, _ids(ranked, where)))
    if not isinstance(ranked, dict):
        raise InputError(f"{where}: a Ranker of another version of Label Studio, without `ranker`")
    buckets = {str(bucket).lower(): _ids(ids, where) for bucket, ids in ranked.items()}
    if not {"best", "worst"} & buckets.keys():
        raise InputError(
            f"{where}: buckets {', '.join(ranked)}; they need the names best and worst"
        )
    scores = best_and_worst(where, buckets.get("best", ()), buckets.get("worst", ()))
    return Ballot(where, voter, scores, others_equal=True)


def _ids(values: Any, where: str) -> list[str]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise InputError(f"{where}: a Ranker without lists of ids, of another version")
    return values
