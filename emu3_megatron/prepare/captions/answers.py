"""Finds the caption in a server's answer, or why there is none."""

import re
from typing import Any

_THOUGHT = "think"  # the tag in which models reason
# How models begin that do not describe the picture.
_REFUSALS = re.compile(
    r"(i['\u2019]?m|i am) (very |so |really )?sorry\b"
    r"|sorry, (but )?i\b"
    r"|i (cannot|can['\u2019]?t|won['\u2019]?t|am unable to|am not able to) "
    r"(help|assist|describe|provide|fulfill|comply|identify|process|view|see|caption)\b"
    r"|i['\u2019]m (unable|not able) to\b"
    r"|as an ai\b"
    r"|(很|非常|十分)?(抱歉|对不起)"
    r"|我(无法|不能)(描述|提供|协助|帮助|识别|回答|查看|看到)",
    re.IGNORECASE,
)


class NoCaption(Exception):
    """The server is there, and this picture gets no caption."""


def caption_in(answer: Any) -> str:
    """The caption, without what the model thought before it.

    Raises:
        NoCaption: there is none, it is cut, or the model refuses.
    """
    try:
        choice = answer.choices[0]
        message, reason = choice.message, getattr(choice, "finish_reason", None)
        refused = getattr(message, "refusal", None)
        content = "" if refused and message.content is None else str(message.content.strip())
    except (IndexError, TypeError, AttributeError):
        raise NoCaption("the endpoint's answer holds no caption") from None
    if refused or reason == "content_filter":
        raise NoCaption(f"the model refuses: {_short(refused or reason)}")
    if reason == "length":
        raise NoCaption("the endpoint's caption is cut at max_tokens")
    caption = _without_thought(content)
    if not caption:
        raise NoCaption("the endpoint's caption is empty")
    if _REFUSALS.match(caption):
        raise NoCaption(f"the model refuses: {_short(caption)}")
    return caption


def _without_thought(content: str) -> str:
    """What follows the reasoning; some servers leave out the tag at its beginning."""
    caption = content.rpartition(f"</{_THOUGHT}>")[2].strip()
    if f"<{_THOUGHT}>" in caption:
        raise NoCaption("the endpoint's answer is reasoning without an end")
    return caption


def _short(text: object) -> str:
    return " ".join(str(text).split())[:80]
