"""What the demo's models made and how they measure, for the page."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from emu3_megatron.demo.documents import Asked, Trained

MODELS = {
    "stage-1": "decoder-run",
    "stage-2": "stage2-run",
    "quality": "quality-run",
    "preferences": "preferences-run",
    "image-to-text": "image-to-text-run",
    "instruct": "instruct-run",
    "read-back": "imported",
}
"""The model that a stage leaves, by its folder; `read-back` is instruct's from its export."""


@dataclass(frozen=True)
class Generated:
    """What the model of stage 1 made, beside what it was trained on.

    Attributes:
        images: the trained images, in the order of their documents.
        drawn: codes generated from each caption, [1, h, w].
        captions: text generated from each image.
        clip: the trained clip.
        continued: codes [f, h, w]; the first half of its frames was given.
    """

    images: list[Trained]
    drawn: list[np.ndarray]
    captions: list[str]
    clip: Trained
    continued: np.ndarray


@dataclass
class Later:
    """What the later stages changed: of each model by the name of its stage.

    Attributes:
        film: what stage 2 was trained on.
        views: pictures that no model was trained on, with their captions.
        asked: questions about such pictures.
        losses: nats a token, by the kind of document that no model was trained on.
        drawn: of each caption some pictures, codes [h, w].
        colour: of each of these pictures.
        continued: codes [f, h, w] of the film; the first half of its frames was given.
        captions: of each view.
        answers: to each question.
    """

    film: Trained
    views: list[Trained]
    asked: list[Asked]
    losses: dict[str, dict[str, float]] = field(default_factory=dict)
    drawn: dict[str, list[list[np.ndarray]]] = field(default_factory=dict)
    colour: dict[str, list[list[float]]] = field(default_factory=dict)
    continued: dict[str, np.ndarray] = field(default_factory=dict)
    captions: dict[str, list[str]] = field(default_factory=dict)
    answers: dict[str, list[str]] = field(default_factory=dict)


@dataclass
class Results:
    """Of a whole demo.

    Attributes:
        out: its folder.
        tokenizer_psnr_db: mean over the photos.
        seconds, commands: of each stage.
        later: None where the later stages did not run.
    """

    out: Path
    tokenizer_psnr_db: float
    first: Generated
    later: Later | None
    seconds: dict[str, float]
    commands: dict[str, list[str]]
