"""Schema of the section `model` of a training recipe: the decoder."""

from pathlib import Path
from typing import Any, Literal

from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from pydantic import model_validator as validator

from emu3_megatron.config.base import REQUIRED, Config, fixed, free, semantic
from emu3_megatron.config.presets import PRESETS
from emu3_megatron.vocabulary import ByteEncoding, QwenEncoding, Vocabulary


class ModelConfig(Config):
    """The decoder. `preset` fills every size that is not given."""

    preset: str | None = free(None, f"sizes by name: {', '.join(PRESETS)}")
    layers: PositiveInt = fixed(REQUIRED, "transformer layers")
    hidden: PositiveInt = fixed(REQUIRED, "width of the hidden states")
    heads: PositiveInt = fixed(REQUIRED, "query heads")
    kv_heads: PositiveInt = fixed(REQUIRED, "key and value heads; divides heads")
    ffn: PositiveInt = fixed(REQUIRED, "width of the MLP")
    text: Literal["qwen", "bytes"] = fixed(REQUIRED, "text encoding: Qwen's BPE, or UTF-8 bytes")
    codes: PositiveInt = fixed(REQUIRED, "visual codes")
    ranks_file: Path | None = free(None, "emu3.tiktoken; without it the copy in dashscope's wheel")
    dropout: NonNegativeFloat = semantic(0.1, "embedding, attention, both residuals", lt=1)
    rope_base: PositiveFloat = fixed(1_000_000, "base of the rotary frequencies")
    norm_epsilon: PositiveFloat = fixed(1e-5, "of RMSNorm")
    init_std: PositiveFloat = semantic(0.02, "standard deviation of the initial weights")

    @validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("preset") is None:
            return values
        if values["preset"] not in PRESETS:
            raise ValueError(f"no such preset; choose one of {', '.join(PRESETS)}")
        return {**PRESETS[values["preset"]], **values}

    @validator(mode="after")
    def _heads_divide(self) -> "ModelConfig":
        if self.hidden % self.heads or self.heads % self.kv_heads:
            raise ValueError(
                f"heads ({self.heads}) must divide hidden ({self.hidden}) and be a multiple of "
                f"kv_heads ({self.kv_heads})"
            )
        return self

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    def vocabulary(self) -> Vocabulary:
        encoding = QwenEncoding(self.ranks_file) if self.text == "qwen" else ByteEncoding()
        return Vocabulary(encoding, self.codes)


def preset_vocabulary(
    preset: str, codes: int | None = None, ranks_file: Path | None = None
) -> Vocabulary:
    """The vocabulary of a preset.

    Args:
        codes: other than the preset's number of codes.
        ranks_file: as in `ModelConfig`.
    """
    values: dict[str, Any] = {"preset": preset, "ranks_file": ranks_file}
    if codes is not None:
        values["codes"] = codes
    return ModelConfig.model_validate(values).vocabulary()
