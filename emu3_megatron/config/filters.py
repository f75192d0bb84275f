"""Schema of the filters of prepare recipes: languages, personal data, classifiers of pictures.

None is on by default.
"""

from pathlib import Path
from typing import Literal

from pydantic import Field

from emu3_megatron.config.base import Config

PersonalData = Literal["email", "ip", "phone"]


class ClassifierConfig(Config):
    """A classifier of images, by weights of yours."""

    model: Path = Field(
        description="folder of an image classifier with its image processor, transformers' layout"
    )
    label: str = Field(description="of the model's classes, whose probability is the score")
