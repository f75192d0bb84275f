"""What every part of a recipe shares."""

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """A part of a recipe: typed, and closed to keys that it does not know."""

    model_config = ConfigDict(extra="forbid", validate_default=True)
