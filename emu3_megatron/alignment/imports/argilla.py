"""Argilla 2's exports, as `dataset.records.to_json(path)` writes them.

A record whose id is the number of a prompt has a ranking of samples, or two questions, `best` and
`worst`; samples are named by id (`12-3`) or by number (`3`). A record whose id is that of a sample
has ratings. Answers of other kinds, and free text, are passed over.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from emu3_megatron.alignment.imports.ballots import Ballot, best_and_worst, ranking
from emu3_megatron.errors import InputError

_HOW = "export with Argilla 2: dataset.records.to_json(path)"


def is_export(record: Mapping[str, Any]) -> bool:
    """Whether a record is one of Argilla, of whatever version and form."""
    return "responses" in record or any(str(key).endswith(".responses") for key in record)


def ballots(records: Sequence[Mapping[str, Any]], file: str) -> Iterator[Ballot]:
    """What users said.

    Raises:
        InputError: an export of another form or version, or an answer that cannot be read; with
            the number of the record.
    """
    for number, record in enumerate(records, 1):
        where = f"{file}: record {number}"
        responses = record.get("responses")
        if not isinstance(responses, dict):
            raise InputError(f"{where}: its responses are not by question; {_HOW}")
        id = str(record.get("id"))
        if re.fullmatch(r"\d+-\d+", id):
            yield from _ratings(responses, id, where)
        elif id.isdecimal():
            yield from _preferences(responses, id, where)
        else:
            raise InputError(
                f"{where}: id {id!r}; a record has the number of a prompt (12) or the id of a "
                "sample (12-3) as its id"
            )


def _answers(given: Any, where: str) -> Iterator[tuple[str, Any]]:
    """The user and the value of each answer to a question."""
    try:
        yield from [(str(answer["user_id"]), answer["value"]) for answer in given]
    except (TypeError, KeyError):
        raise InputError(f"{where}: answers without user_id and value; {_HOW}") from None


def _ratings(responses: Mapping[str, Any], id: str, where: str) -> Iterator[Ballot]:
    for given in responses.values():
        for user, value in _answers(given, where):
            if isinstance(value, int | float) and not isinstance(value, bool):
                yield Ballot(where, user, {id: float(value)}, rated=True)


def _preferences(responses: Mapping[str, Any], prompt: str, where: str) -> Iterator[Ballot]:
    extremes: defaultdict[str, dict[str, list[str]]] = defaultdict(dict)
    for question, given in responses.items():
        for user, value in _answers(given, where):
            if question in ("best", "worst"):
                extremes[user][question] = [_id(value, prompt, where)]
            elif isinstance(value, list) and value:
                yield Ballot(where, user, _ranking(value, prompt, where))
    for user, found in extremes.items():
        scores = best_and_worst(where, found.get("best", ()), found.get("worst", ()))
        yield Ballot(where, user, scores, others_equal=True)


def _ranking(value: Sequence[Any], prompt: str, where: str) -> dict[str, float]:
    """A list of samples, the best first, or of {"value", "rank"}."""
    if not all(isinstance(item, dict) and "rank" in item for item in value):
        return ranking(where, [_id(item, prompt, where) for item in value])
    ids = [_id(item.get("value"), prompt, where) for item in value]
    return ranking(where, ids, [float(item["rank"]) for item in value])


def _id(value: Any, prompt: str, where: str) -> str:
    """A sample's id, from itself or from its number."""
    if not re.fullmatch(r"(\d+-)?\d+", str(value)):
        raise InputError(f"{where}: {value!r} is no sample; name samples 12-3, or 3 for prompt 12")
    return str(value) if "-" in str(value) else f"{prompt}-{value}"
