"""What the demo's models made and how they measure, for the page."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

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
PAINTERS = ("stage-1", "stage-2", "quality", "preferences")
FILMERS = ("stage-1", "stage-2")
DESCRIBERS = ("stage-2", "image-to-text")
ANSWERERS = ("image-to-text", "instruct", "read-back")


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
        drawn: of each caption some pictures.
        colour: of each of these pictures.
        continued: codes [f, h, w] of the film; the first half of its frames was given.
        captions: of each view.
        answers: to each question.
    """

    film: Trained
    views: list[Trained]
    asked: list[Asked]
    losses: dict[str, dict[str, float]] = field(default_factory=dict)
    drawn: dict[str, list[list[Image.Image]]] = field(default_factory=dict)
    colour: dict[str, list[list[float]]] = field(default_factory=dict)
    continued: dict[str, np.ndarray] = field(default_factory=dict)
    captions: dict[str, list[str]] = field(default_factory=dict)
    answers: dict[str, list[str]] = field(default_factory=dict)

    def preferred(self) -> float:
        """Share of DPO's pictures that have more colour than those of the same seed before it."""
        after, before = (np.array(self.colour[model]) for model in ("preferences", "quality"))
        return float((after > before).mean())

    def exact_captions(self, model: str) -> int:
        pairs = zip(self.views, self.captions[model], strict=True)
        return sum(view.caption == said for view, said in pairs)

    def exact_answers(self, model: str) -> int:
        pairs = zip(self.asked, self.answers[model], strict=True)
        return sum(asked.answer == said for asked, said in pairs)

    def figures(self) -> dict[str, Any]:
        """What says whether each stage did what it is for, by model."""
        codes = {model: self.losses[model]["codes of views"] for model in FILMERS}
        return {
            "nll_codes_of_views": codes,
            "colour": {model: float(np.mean(self.colour[model])) for model in PAINTERS},
            "preferred": self.preferred(),
            "views": len(self.views),
            "exact_captions": {model: self.exact_captions(model) for model in DESCRIBERS},
            "questions": len(self.asked),
            "exact_answers": {model: self.exact_answers(model) for model in ANSWERERS},
        }


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
