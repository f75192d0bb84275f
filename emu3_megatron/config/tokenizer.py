"""The recipe of the visual tokenizer: its network, and how it is trained."""

from typing import Any

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
