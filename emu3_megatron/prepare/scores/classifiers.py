"""Watermark and NSFW scores of pictures, 0 to 1, by classifiers whose weights the user gives."""

from collections.abc import Sequence
from typing import Any

from PIL import Image

from emu3_megatron.config.filters import ClassifierConfig
from emu3_megatron.config.prepare import ClipsConfig, ImagesConfig
from emu3_megatron.errors import InputError
from emu3_megatron.prepare.tables import Row

NAMES = ("watermark", "nsfw")
"""Keys of the recipe, and columns of the tables."""


def classifiers_of(config: ImagesConfig | ClipsConfig) -> dict[str, ClassifierConfig]:
    """Those that a recipe asks for, by their column."""
    found = {name: getattr(config, name) for name in NAMES}
    return {name: section for name, section in found.items() if section is not None}


def classifier_settings(config: ImagesConfig | ClipsConfig) -> dict[str, Any]:
    """What decides their scores; nothing where there are none."""
    found = classifiers_of(config)
    return {name: section.model_dump(mode="json") for name, section in found.items()}


def classifier_fault(row: Row, config: ImagesConfig | ClipsConfig) -> str | None:
    """Why a picture is dropped for these scores, `category: details`."""
    for name in classifiers_of(config):
        if row[name] > getattr(config, f"max_{name}"):
            return f"{name}: {row[name]:.1%}"
    return None


class Classifiers:
    """The scores that a recipe asks for; of several pictures the greatest.

    Raises:
        InputError: weights that cannot be read, or that have no such label.
    """

    def __init__(self, config: ImagesConfig | ClipsConfig, device: str):
        self._classifiers = {
            name: Classifier(name, section, device)
            for name, section in classifiers_of(config).items()
        }

    def __call__(self, images: Sequence[Image.Image]) -> dict[str, float]:
        return {name: max(classify(images)) for name, classify in self._classifiers.items()}


class Classifier:
    """The probability of one class, as transformers' image classifiers give it."""

    def __init__(self, name: str, config: ClassifierConfig, device: str):
        try:
            from transformers import AutoImageProcessor, AutoModelForImageClassification
        except ImportError:
            raise InputError(f"{name}.model: pip install transformers to use it") from None
        if not config.model.is_dir():
            raise InputError(f"{name}.model: {config.model}: no such folder")
        try:
            self._processor = AutoImageProcessor.from_pretrained(
                config.model, local_files_only=True
            )
            model = AutoModelForImageClassification.from_pretrained(
                config.model, local_files_only=True
            )
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:120]
            raise InputError(f"{name}.model: {config.model}: cannot be loaded ({reason})") from None
        self._model, self._device = model.eval().to(device), device
        self._column = _column_of(name, config, model.config.id2label)
        self._of_each = (  # classes that do not exclude each other
            model.config.num_labels == 1
            or model.config.problem_type == "multi_label_classification"
        )

    def __call__(self, images: Sequence[Image.Image]) -> list[float]:
        """Scores of RGB images."""
        import torch

        pixels = self._processor(images=list(images), return_tensors="pt").to(self._device)
        with torch.no_grad():
            logits = self._model(**pixels).logits.float()
        shares = logits.sigmoid() if self._of_each else logits.softmax(-1)
        return [round(float(share), 4) for share in shares[:, self._column]]


def _column_of(name: str, config: ClassifierConfig, labels: dict[int, str]) -> int:
    for column, label in labels.items():
        if label.casefold() == config.label.casefold():
            return column
    raise InputError(
        f"{name}.label: {config.model} has no class {config.label!r}; it has "
        f"{', '.join(labels.values())}"
    )
