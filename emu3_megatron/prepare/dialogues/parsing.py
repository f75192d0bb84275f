"""Makes a dialogue of a row, or says why the row cannot be used. Nothing is guessed or repaired.

A row holds `conversations` or `messages`; a message names its speaker by `from` and `value` or by
`role` and `content`; images are named by `image` or `images`, one or a list, clips by `video` or
`videos`. `<image>` and `<video>` mark where they stand. Further keys mean nothing here.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from emu3_megatron.errors import InputError
from emu3_megatron.prepare.dialogues.rows import Damaged, NotJson

USERS = frozenset({"user", "human"})
ASSISTANTS = frozenset({"assistant", "gpt", "chatgpt", "model"})
# A mark stands on a line of its own by LLaVA's custom: the line breaks beside it belong to it.
_MARK = re.compile(r"\n?<(image|video)>\n?")
_SHOWN = 40  # characters of what a message quotes

Kind = Literal["image", "video"]


class OddRowError(InputError):
    """A row that cannot be used; the message is `category: details`."""


@dataclass(frozen=True)
class Medium:
    """An image or a clip of a row.

    Attributes:
        name: of the file; None: it lies inside the row.
    """

    kind: Kind
    name: str | None


@dataclass(frozen=True)
class Question:
    """A turn.

    Attributes:
        parts: texts, and the places of images and clips among those of the row, in order.
        answer: None when it is to be generated.
    """

    parts: list[str | int]
    answer: str | None


@dataclass(frozen=True)
class Dialogue:
    """A row that can be used.

    Attributes:
        system: text in the place of Emu3's, if the row has one.
    """

    turns: list[Question]
    media: list[Medium]
    system: str | None = None


def parse_row(row: Any, *, is_open: bool = False) -> Dialogue:
    """The dialogue of a row.

    Args:
        is_open: the last question waits for its answer.

    Raises:
        OddRowError: it says why the row cannot be used.
    """
    if isinstance(row, NotJson):
        raise OddRowError(f"not JSON: {row.reason}")
    if isinstance(row, Damaged):
        raise OddRowError(f"unreadable: {row.reason}")
    if not isinstance(row, dict):
        raise OddRowError(f"no dialogue: a {type(row).__name__} and no row")
    messages = _messages(row)
    _check_order([role for role, _ in messages], is_open)
    media = [*_media(row, "image"), *_media(row, "video")]
    questions = [text for role, text in messages if role == "user"]
    answers = [text.strip() for role, text in messages if role == "assistant"]
    placed = _place(questions, answers, [medium.kind for medium in media])
    given = [*answers, None] if is_open else answers
    turns = [Question(parts, answer) for parts, answer in zip(placed, given, strict=True)]
    _check_content(turns)
    system = next((text.strip() for role, text in messages if role == "system"), None)
    return Dialogue(turns, media, system or None)


def _messages(row: dict[str, Any]) -> list[tuple[str, str]]:
    """Role (system, user or assistant) and text of each message."""
    found = [key for key in ("conversations", "messages") if row.get(key) is not None]
    if len(found) != 1:
        what = "both" if found else "neither"
        raise OddRowError(f"no dialogue: {what} conversations and messages")
    messages = row[found[0]]
    if not isinstance(messages, list) or not messages:
        raise OddRowError(f"no dialogue: {found[0]} is no list of messages")
    return [_message(message, number) for number, message in enumerate(messages, 1)]


def _message(message: Any, number: int) -> tuple[str, str]:
    if not isinstance(message, dict):
        raise OddRowError(f"no dialogue: message {number} has neither from nor role")
    role = message.get("from", message.get("role"))
    text = _text(message.get("value", message.get("content")))
    if text is None:
        raise OddRowError(f"no text: in message {number}")
    if role == "system" and number == 1:
        return "system", text
    if role in USERS:
        return "user", text
    if role in ASSISTANTS:
        return "assistant", text
    raise OddRowError(f"unknown role: {str(role)[:_SHOWN]!r} in message {number}")


def _text(content: Any) -> str | None:
    """A text, or one of typed parts, in which an image or a clip is its mark."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        return None
    parts = []
    for part in content:
        if part.get("type") in ("image", "video"):
            parts.append(f"<{part['type']}>")
        elif part.get("type") == "text" and isinstance(part.get("text"), str):
            parts.append(part["text"])
        else:
            return None
    return "".join(parts)


def _check_order(roles: Sequence[str], is_open: bool) -> None:
    """User and assistant take turns; the user begins, the assistant has the last word.

    In an open dialogue the user has it.
    """
    first = 1 + ("system" in roles)  # number of the first message that is no system text
    roles = [role for role in roles if role != "system"]
    if not roles:
        raise OddRowError("no dialogue: nothing but a system text")
    if roles[0] == "assistant":
        raise OddRowError("starts with the assistant: a user's question comes first")
    for number, (before, role) in enumerate(pairwise(roles), first + 1):
        if role == before:
            raise OddRowError(f"two turns running: both of the {role}, at message {number}")
    if roles[-1] == "user" and not is_open:
        raise OddRowError("no answer: the last turn is the user's")
    if roles[-1] != "user" and is_open:
        raise OddRowError("no open question: the last turn is the assistant's")


def _media(row: dict[str, Any], kind: Kind) -> list[Medium]:
    """What a row names, one or a list, in order."""
    found = [key for key in (kind, f"{kind}s") if not _is_nothing(row.get(key))]
    if len(found) > 1:
        raise OddRowError(f"{kind}s named twice: by {kind} and by {kind}s")
    if not found:
        return []
    values = row[found[0]]
    values = values if isinstance(values, list) else [values]
    return [_medium(value, kind) for value in values]


def _is_nothing(value: Any) -> bool:
    return value is None or value == "" or value == [] or value != value  # NaN


def _medium(value: Any, kind: Kind) -> Medium:
    if isinstance(value, str) and value:
        return Medium(kind, value)
    if isinstance(value, dict) and isinstance(value.get("bytes"), bytes) and kind == "image":
        return Medium(kind, None)
    if isinstance(value, dict) and isinstance(value.get("path"), str):
        return Medium(kind, value["path"])
    raise OddRowError(f"no name: {str(value)[:_SHOWN]!r} where {kind}s are named")


def _place(
    questions: Sequence[str], answers: Sequence[str], kinds: Sequence[Kind]
) -> list[list[str | int]]:
    """The parts of each question, marks replaced by places among the row's media."""
    split = [_MARK.split(question.strip()) for question in questions]
    marks = [mark for parts in split for mark in parts[1::2]]
    if "image" not in kinds and "video" not in marks:  # LLaVA-Video marks clips with <image>
        marks = ["video" for _ in marks] if "video" in kinds else marks
    _check_marks(marks, answers, kinds)
    waiting = {kind: [i for i, k in enumerate(kinds) if k == kind] for kind in ("image", "video")}
    in_order = iter([waiting[mark].pop(0) for mark in marks])
    placed = []
    for parts in split:
        texts: list[str | int] = [next(in_order) if i % 2 else t for i, t in enumerate(parts)]
        placed.append(_trimmed(texts))
    return placed


def _check_marks(marks: Sequence[str], answers: Sequence[str], kinds: Sequence[Kind]) -> None:
    for answer in answers:
        if mark := _MARK.search(answer):
            raise OddRowError(f"mark in an answer: <{mark[1]}>, but only questions show images")
    for kind in ("image", "video"):
        have, marked = kinds.count(kind), marks.count(kind)
        if have != marked:
            raise OddRowError(f"{kind}s and marks: {have} {kind}s, {marked} <{kind}> marks")


def _trimmed(parts: list[str | int]) -> list[str | int]:
    """Without empty texts, nor white space where the question's text begins and ends."""
    texts = [i for i, part in enumerate(parts) if isinstance(part, str) and part.strip()]
    if texts:
        parts[texts[0]] = str(parts[texts[0]]).lstrip()
        parts[texts[-1]] = str(parts[texts[-1]]).rstrip()
    return [part for i, part in enumerate(parts) if isinstance(part, int) or i in texts]


def _check_content(turns: Sequence[Question]) -> None:
    for number, turn in enumerate(turns, 1):
        if not turn.parts:
            raise OddRowError(f"empty question: of turn {number}")
        if turn.answer == "":
            raise OddRowError(f"empty answer: of turn {number}")
