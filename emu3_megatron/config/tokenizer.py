"""Schema of the vision tokenizer's network."""

from typing import Any

from pydantic import ConfigDict
from pydantic import model_validator as validator

from emu3_megatron.config.base import Config, fixed

PRESETS: dict[str, dict[str, Any]] = {
    "full": {},  # the published network: every default below
    # One CPU core for an hour, or a GPU for minutes.
    "small": {
        "codebook_size": 2048,
        "base_channels": 32,
        "channel_multiplier": (1, 2, 4, 4),
        "num_res_blocks": 1,
    },
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

    preset: str = fixed("full", "full (270,740,287 parameters), small or tiny")
    codebook_size: int = fixed(32768, "number of codes", ge=2)
    embed_dim: int = fixed(4, "length of a code vector", ge=1)
    latent_channels: int = fixed(4, "channels that the temporal layers see", ge=1)
    base_channels: int = fixed(256, "channels at full resolution", gt=0, multiple_of=32)
    channel_multiplier: tuple[int, int, int, int] = fixed(
        (1, 2, 2, 4), "times base_channels, at each of the four resolutions"
    )
    num_res_blocks: int = fixed(2, "residual blocks a level; the decoder has +1", ge=1)
    attention_levels: tuple[int, ...] = fixed((3,), "which have attention; 3: smallest")

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
