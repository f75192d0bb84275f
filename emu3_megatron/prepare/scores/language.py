"""The language of a text, by py3langid, whose model is in its wheel."""

from collections.abc import Sequence
from functools import cache
from typing import Any

from emu3_megatron.errors import InputError

IDENTIFIED_BY = "py3langid/0.4"  # changes where scores do
UNKNOWN = "und"  # ISO 639's code for what cannot be told
_READ = 10_000  # characters at the beginning of a text that are looked at
_UNIFORM = 2.5  # times the mean probability: all are as likely; one label stands for two


def identify(text: str) -> tuple[str, float]:
    """Code of the most likely language, and its probability, 0 to 1.

    What holds nothing that tells languages apart is `und`, with 0.
    """
    text = text[:_READ]
    identifier = _identifier()
    if not any(map(str.isalpha, text)):
        return UNKNOWN, 0.0
    language, score = identifier.classify(text)
    if score < _UNIFORM / len(identifier.labels):
        return UNKNOWN, 0.0
    return language, round(float(score), 4)


def refuse_unknown(languages: Sequence[str], key: str) -> None:
    """Raises InputError when py3langid is missing, or has no language of this code."""
    known = [*_identifier().labels, UNKNOWN]
    for language in languages:
        if language not in known:
            raise InputError(
                f"{key}: no language {language!r}; choose among {', '.join(sorted(known))}"
            )


@cache
def _identifier() -> Any:
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError:
        raise InputError(
            "languages need py3langid: pip install 'emu3-megatron[languages]'"
        ) from None
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def language_fault(
    language: str, score: float, languages: Sequence[str], least: float
) -> str | None:
    """Why a text of this language and score is dropped, `category: details`."""
    if language not in languages:
        return f"other language: {language} ({score:.2f})"
    if score < least:
        return f"unsure language: {language} ({score:.2f})"
    return None
