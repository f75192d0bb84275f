"""Text out of tokens as they come, up to a stop string."""

import codecs
from collections.abc import Iterable, Sequence


class TextOut:
    """Decodes tokens; holds back what may be part of a character or of a stop string.

    Args:
        token_bytes: of each token of text; other tokens are no text.
        stops: strings that end the text; they are not part of it.

    Attributes:
        has_stopped: a stop string has come.
    """

    def __init__(self, token_bytes: Sequence[bytes], stops: Sequence[str] = ()):
        self.has_stopped = False
        self._token_bytes = token_bytes
        self._stops = stops
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""

    def feed(self, tokens: Iterable[int]) -> str:
        """The text that is certain with these tokens."""
        pieces = [self._token_bytes[t] for t in tokens if t < len(self._token_bytes)]
        return self._release(self._decoder.decode(b"".join(pieces)))

    def finish(self) -> str:
        """What was held back; nothing more comes."""
        rest = self._release(self._decoder.decode(b"", final=True))
        held, self._held = self._held, ""
        return rest + held

    def _release(self, new: str) -> str:
        if self.has_stopped:
            return ""
        text = self._held + new
        found = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if found:
            self.has_stopped, self._held = True, ""
            return text[: min(found)]
        kept = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - kept :]
        return text[: len(text) - kept]


def _overlap(text: str, stop: str) -> int:
    """How much of the end of a text may be the beginning of a stop string."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if stop.startswith(text[-n:])), 0)
