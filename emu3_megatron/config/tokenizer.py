"""Schema of tokenizer recipes: the network of the vision tokenizer, and its training."""

from pathlib import Path
from typing import Any, ClassVar

from pydantic import ConfigDict, Field
from pydantic import model_validator as validator

from emu3_megatron.config.base import Config

PRESETS: dict[str, dict[str, Any]] = {
    "full": {},  # the published network: every default below
    # The demo and the tests: small in size, not in kind.
    "tiny": {
        "codebook_size": 512,
        "base_channels": 32,
        "channel_multiplier": (1, 1, 2, 4),
        "num_res_blocks": 1,
    },
}


class TokenizerNetwork(Config):
    """Shape of the network. `preset` fills every size that is not given."""

    model_config = ConfigDict(frozen=True)

    preset: str = Field("full", description="full (270,740,287 parameters) or tiny")
    codebook_size: int = Field(32768, ge=2, description="number of codes")
    embed_dim: int = Field(4, ge=1, description="length of a code vector")
    latent_channels: int = Field(4, ge=1, description="channels that the temporal layers see")
    base_channels: int = Field(256, gt=0, multiple_of=32, description="channels at full resolution")
    channel_multiplier: tuple[int, int, int, int] = Field(
        (1, 2, 2, 4), description="times base_channels, at each of the four resolutions"
    )
    num_res_blocks: int = Field(2, ge=1, description="residual blocks a level; the decoder has +1")
    attention_levels: tuple[int, ...] = Field((3,), description="which have attention; 3: smallest")

    @validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        preset = values.get("preset", "full")
        if preset not in PRESETS:
            raise ValueError(f"no such preset; choose one of {', '.join(PRESETS)}")
        return {**PRESETS[preset], **values}

    @property
    def level_channels(self) -> tuple[int, ...]:
        return tuple(self.base_channels * multiplier for multiplier in self.channel_multiplier)


class TokenizerData(Config):
    """What the tokenizer sees."""

    images: Path = Field(description="folder of photos, searched through")
    clips: Path | None = Field(None, description="folder of clips; photos alone without it")
    area: int = Field(262_144, ge=64, description="pixels of a photo or frame after its resize")
    crop: int | None = Field(
        256, ge=8, multiple_of=8, description="square side; null: whole photos"
    )
    clip_share: float = Field(0.25, ge=0, le=1, description="share of samples that are clips")
    clip_frames: int = Field(8, ge=4, multiple_of=4, description="frames of a clip sample")
    clip_fps: float = Field(12, gt=0, description="frames a second to take from clips")


class LossWeights(Config):
    """Weight of each term; 0 leaves it out."""

    l2: float = Field(1, ge=0, description="mean squared error of the pixels")
    l1: float = Field(0, ge=0, description="mean absolute error of the pixels")
    codebook: float = Field(0.25, ge=0, description="draws codes to latents")
    commitment: float = Field(1, ge=0, description="draws latents to codes")


class TokenizerRecipe(Config):
    """A training of the tokenizer."""

    READER: ClassVar[str] = "emu3 tokenizer train"

    network: TokenizerNetwork = Field(
        default_factory=lambda: TokenizerNetwork.model_validate({}),
        description=TokenizerNetwork.__doc__,
    )
    data: TokenizerData = Field(description=TokenizerData.__doc__)
    loss: LossWeights = Field(
        default_factory=lambda: LossWeights.model_validate({}), description=LossWeights.__doc__
    )
    start_from: Path | None = Field(None, description="tokenizer folder to go on from")
    steps: int = Field(ge=1, description="optimizer steps")
    batch_size: int = Field(ge=1, description="photos and clips a step")
    lr: float = Field(gt=0, description="peak learning rate")
    lr_warmup_steps: int = Field(0, ge=0, description="steps of linear rise; a cosine to 0 follows")
    betas: tuple[float, float] = Field((0.5, 0.9), description="of Adam")
    clip_grad_norm: float = Field(1, gt=0, description="longest gradient")
    plain_steps: int = Field(ge=1, description="steps without codes, before k-means places them")
    batch_norm_steps: int = Field(ge=0, description="steps that set BatchNorm's statistics")
    revive_every: int = Field(ge=1, description="steps between two revivals of unused codes")
    log_every: int = Field(10, ge=1, description="steps between two lines of metrics.jsonl")
    workers: int = Field(0, ge=0, description="processes that read the data; 0: the main one")
    seed: int = Field(0, ge=0, description="of weights, order, crops and codes")
