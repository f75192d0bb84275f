"""Sections of tokenizer recipes: loss terms and discriminators."""

from pathlib import Path
from typing import Literal, Self

from pydantic import model_validator as validator

from emu3_megatron.config.base import REQUIRED, Config, fixed, free, semantic

_LPIPS_SIDE = 32  # below it AlexNet has nothing left to pool


class PerceptualConfig(Config):
    """A loss that compares what is seen rather than pixel with pixel."""

    kind: Literal["none", "gradient_ssim", "lpips"] = fixed(
        "none", "gradient_ssim: without weights; lpips: of VGG16 or AlexNet, from a file"
    )
    weight: float = semantic(0.1, "of the term", gt=0)
    weights: Path | None = free(
        None, "of lpips: vgg16-397923af.pth or alexnet-owt-7be5be79.pth of torchvision"
    )
    heads: Path | None = free(
        None, "of lpips: vgg.pth or alex.pth of the lpips package, weights/v0.1"
    )
    sha256: list[str] = semantic(
        [], "of other files to accept as weights or heads; the published ones are known"
    )

    @validator(mode="after")
    def _lpips_has_its_files(self) -> Self:
        for name in ("weights", "heads"):
            if self.kind == "lpips" and getattr(self, name) is None:
                field = type(self).model_fields[name]
                what = str(field.description).removeprefix("of lpips: ")
                raise ValueError(
                    f"kind=lpips needs {name}, a file ({what}); kind=gradient_ssim needs none"
                )
        return self

    @property
    def least_side(self) -> int:
        """Pixels a side under which the loss cannot be computed."""
        return _LPIPS_SIDE if self.kind == "lpips" else 1

    def require_sides(self, side: int, name: str) -> None:
        """Refuse pixels that the loss has no features of.

        Args:
            side: the shortest that square training samples can have.
            name: the recipe's key that decides it.

        Raises:
            ValueError: they are too few.
        """
        if side < self.least_side:
            raise ValueError(
                f"{name}: {side} pixels are under the {self.least_side} that "
                "loss.perceptual.kind=lpips needs; take larger ones, or kind=gradient_ssim"
            )


class EntropyConfig(Config):
    """Rewards codes that are each chosen with certainty and all chosen equally often."""

    weight: float = semantic(0.1, "of the term", gt=0)
    temperature: float = semantic(
        REQUIRED,
        "squared distance that makes a code e times less likely; a third of that between latents "
        "and their codes serves: of the metric commitment x the length of a code",
        gt=0,
    )


class LossConfig(Config):
    """Weight of each term. Which terms there are cannot change within a run; 0 leaves one out."""

    l2: float = fixed(1, "mean squared error of the pixels", ge=0)
    l1: float = fixed(0, "mean absolute error of the pixels", ge=0)
    codebook: float = fixed(0.25, "draws codes to latents", ge=0)
    commitment: float = fixed(1, "draws latents to codes", ge=0)
    perceptual: PerceptualConfig = semantic(PerceptualConfig(), "compares what is seen")
    entropy: EntropyConfig | None = fixed(None, "spreads the use of codes; null: without")

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each of the plain terms that the loss has."""
        found = {name: getattr(self, name) for name in ("l2", "l1", "codebook", "commitment")}
        return {name: weight for name, weight in found.items() if weight}

    @validator(mode="after")
    def _compares_pixels(self) -> Self:
        if not (self.l2 or self.l1 or self.perceptual.kind != "none"):
            raise ValueError("no term compares pixels; give l2, l1 or perceptual a weight")
        return self


class AdversarialConfig(Config):
    """Discriminators: their shape, their optimizer, and when and how strongly they are felt."""

    weight: float = semantic(0.1, "of the adversarial term", gt=0)
    adaptive: bool = semantic(
        True, "multiply the weight so that the term's gradient is as long as that of the others"
    )
    start: int = semantic(1, "step from which the discriminators train", ge=1)
    warmup: int = semantic(1000, "steps they train alone before the tokenizer feels them", ge=0)
    channels: int = fixed(64, "of the first layer", ge=8, multiple_of=8)
    layers: int = fixed(3, "convolutions that halve the sides", ge=1, le=5)
    norm: Literal["group", "none"] = fixed("group", "between the layers")
    lecam: float = fixed(0, "weight of LeCam's regularisation; 0: without", ge=0)
    lr: float = semantic(1e-4, "peak learning rate of the discriminators", gt=0)
    betas: tuple[float, float] = semantic((0.5, 0.9), "of their Adam")

    @property
    def receptive_field(self) -> int:
        """Pixels a side that one logit sees."""
        side = 7  # of the two convolutions that keep the sides
        for _ in range(self.layers):
            side = 2 * side + 2
        return side

    def require_sides(self, side: int, name: str) -> None:
        """Refuse pixels that a logit would see beyond.

        Args:
            side: the shortest that square training samples can have.
            name: the recipe's key that decides it.

        Raises:
            ValueError: it is under the receptive field.
        """
        if side < self.receptive_field:
            raise ValueError(
                f"{name}: {side} pixels are under the {self.receptive_field} that a discriminator "
                f"with adversarial.layers={self.layers} sees; take larger ones, or fewer layers"
            )

    def require_steps(self, steps: int) -> None:
        """Refuse discriminators that the tokenizer would never feel.

        Raises:
            ValueError: they start, or are first felt, after the last step.
        """
        first = self.start + self.warmup
        if first > steps:
            raise ValueError(
                f"adversarial: felt from step {first} on (start {self.start} + warmup "
                f"{self.warmup}), after the last, {steps}; lower adversarial.start or "
                "adversarial.warmup, or leave adversarial out"
            )
