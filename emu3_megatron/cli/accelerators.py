"""Which optional packages would make a training faster, and what each would bring to a recipe."""

from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

from emu3_megatron.config import Recipe


def accelerators(recipe: Recipe) -> Iterator[str]:
    """A line on each of flash-attn, apex and TransformerEngine."""
    for package, use in _uses(recipe):
        try:
            yield f"{package} {version(package)} is installed: {use}"
        except PackageNotFoundError:
            yield f"{package} is not installed; it would bring: {use}"


def _uses(recipe: Recipe) -> Iterator[tuple[str, str]]:
    if recipe.model.dropout:
        attention = "nothing for this recipe, whose model.dropout it could not compute"
    else:
        attention = "attention inside documents, by the choices of backend.attention"
    yield "flash-attn", attention
    gradients = "weight gradients added to their buffers in the product, and AdamW in one kernel"
    yield "apex", f"{gradients}; torch's own do both otherwise"
    layers = "backend.layers=transformer_engine, with products in 8 bits by backend.fp8"
    if recipe.backend.layers == "transformer_engine":
        layers = "the layers, which backend.layers asks for"
    yield "transformer-engine", f"{layers}, and AdamW in one kernel"
