"""Schema of what a prepare recipe says about dialogues, and about Emu3's feature files."""

from pathlib import Path

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from emu3_megatron.config.base import Config


class DialoguesConfig(Config):
    """Questions and answers about images and clips, as LLaVA and ShareGPT write them."""

    source: Path = Field(
        description="file of rows, .json, .jsonl or .parquet, or a folder that is searched through"
    )
    media: Path | None = Field(
        None, description="folder in which rows name their images; that of `source` without it"
    )
    # As Emu3's image processor has them.
    min_area: PositiveInt = Field(512 * 512, description="pixels; smaller images are enlarged")
    max_area: PositiveInt = Field(1024 * 1024, description="pixels; larger images are reduced")
    # Emu3-Chat reads no clips; these are ours.
    clip_area: PositiveInt = Field(512 * 512, description="pixels a frame is encoded at")
    clip_fps: PositiveFloat = Field(4.0, description="frames a second that a video is read at")
    clip_frames: PositiveInt = Field(
        32, description="of one clip at most; a longer video is read at fewer a second", ge=4
    )
    max_tokens: PositiveInt = Field(131_072, description="a longer dialogue cannot be used")
    skip_bad: bool = Field(
        False, description="set aside rows that cannot be used, instead of stopping at the first"
    )

    @model_validator(mode="after")
    def _areas_are_a_range(self) -> "DialoguesConfig":
        if self.min_area > self.max_area:
            raise ValueError(f"min_area={self.min_area} is above max_area={self.max_area}")
        return self


class FeaturesConfig(Config):
    """Feature files: codes and captions, as Emu3's published training script reads them."""

    source: Path = Field(description="their list, list/train.json of Emu3's prepare_data.py")
    folder: Path | None = Field(
        None, description="of the .pth files; the list's `prefix` without it"
    )
    skip_bad: bool = Field(
        False, description="set aside files that cannot be used, instead of stopping at the first"
    )
