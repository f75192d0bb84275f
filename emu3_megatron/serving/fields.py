"""Fields of calls: their types, and the one line that says which is wrong."""

import re
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json

from emu3_megatron.generation.sampling import SamplingSettings
from emu3_megatron.grammar import Meta
from emu3_megatron.serving.errors import wrong
from emu3_megatron.vision.tokenizer import SPATIAL_FACTOR

B = TypeVar("B", bound=BaseModel)

MOST_AT_ONCE = 10  # results of a call

Seed = Annotated[int, Field(ge=0, lt=1 << 63)]
Temperature = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
TopP = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
TopK = Annotated[int, Field(ge=1)]
Guidance = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
Number = Annotated[int, Field(ge=1, le=MOST_AT_ONCE)]
Count = Annotated[int, Field(ge=1, lt=1 << 31)]
Name = Annotated[str, Field(max_length=256)]


class Body(BaseModel):
    """A call's fields. Types are never converted, and no other fields are taken."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


def only(*values: Any) -> AfterValidator:
    """For a field of OpenAI's that clients send, and of which only these values can be honoured."""

    def check(value: Any) -> Any:
        if value is not None and value not in values:
            said = " or ".join(str(v).lower() if isinstance(v, bool) else repr(v) for v in values)
            raise ValueError(f"not supported; leave it out{f', or give {said}' if said else ''}")
        return value

    return AfterValidator(check)


def parse(kind: type[B], body: bytes) -> B:
    """The fields of a body of JSON; raises Refused, which names the field."""
    try:
        values = from_json(body, allow_inf_nan=False)
    except ValueError:
        raise wrong("the body is not JSON") from None
    return parse_values(kind, values)


def parse_values(kind: type[B], values: Any, strict: bool = True) -> B:
    """See `parse`; without `strict` numbers may be written as strings."""
    if not isinstance(values, dict):
        raise wrong("the body is not an object")
    try:
        return kind.model_validate(values, strict=strict)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    name = ".".join(map(str, first["loc"]))[:100]
    said = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        said = "unknown field"
    raise wrong(f"{name}: {said}", name)


def meta_of(size: str, param: str = "size") -> Meta:
    """The grid of a picture of WIDTHxHEIGHT pixels."""
    match = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", size)
    if not match:
        raise wrong(f"{param}: write WIDTHxHEIGHT in pixels, 512x512 say", param)
    width, height = map(int, match.groups())
    if width % SPATIAL_FACTOR or height % SPATIAL_FACTOR:
        raise wrong(f"{param}: both sides must be multiples of {SPATIAL_FACTOR}", param)
    return Meta(height // SPATIAL_FACTOR, width // SPATIAL_FACTOR)


def size_of(meta: Meta) -> str:
    return f"{SPATIAL_FACTOR * meta.width}x{SPATIAL_FACTOR * meta.height}"


def text_settings(
    temperature: float | None, top_k: int | None, top_p: float | None, seed: int
) -> SamplingSettings:
    """How text is drawn: without guidance, by default from all tokens at temperature 1."""
    return SamplingSettings(
        guidance=1.0,
        temperature=1.0 if temperature is None else temperature,
        top_k=top_k,
        top_p=1.0 if top_p is None else top_p,
        seed=seed,
    )
