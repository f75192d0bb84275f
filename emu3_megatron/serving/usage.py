"""How many tokens a call took, those of text and of pictures apart."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from emu3_megatron.vocabulary import TEXT, Vocabulary


@dataclass(frozen=True)
class Tokens:
    """Tokens of text, and of pictures from BOI to EOI."""

    text: int = 0
    image: int = 0

    @classmethod
    def of(
        cls, vocabulary: Vocabulary, tokens: np.ndarray, starts_inside: bool = False
    ) -> "Tokens":
        """Count.

        Args:
            starts_inside: the first stand in a picture.
        """
        tokens = np.asarray(tokens)
        begun = np.cumsum(tokens == vocabulary.vision_start) + starts_inside
        ended = np.cumsum(tokens == vocabulary.vision_end)
        is_text = (begun == ended) & (vocabulary.token_class(tokens) == TEXT)
        text = int(is_text.sum())
        return cls(text, len(tokens) - text)

    def __add__(self, other: "Tokens") -> "Tokens":
        return Tokens(self.text + other.text, self.image + other.image)

    @property
    def total(self) -> int:
        return self.text + self.image

    @property
    def details(self) -> dict[str, int]:
        return {"text_tokens": self.text, "image_tokens": self.image}


def chat_usage(prompt: Tokens, said: Tokens) -> dict[str, Any]:
    """As chat and text completions name it."""
    return {
        "prompt_tokens": prompt.total,
        "completion_tokens": said.total,
        "total_tokens": prompt.total + said.total,
        "prompt_tokens_details": prompt.details,
        "completion_tokens_details": said.details,
    }


def image_usage(prompt: Tokens, drawn: Tokens) -> dict[str, Any]:
    """As images name it."""
    return {
        "input_tokens": prompt.total,
        "output_tokens": drawn.total,
        "total_tokens": prompt.total + drawn.total,
        "input_tokens_details": prompt.details,
        "output_tokens_details": drawn.details,
    }
