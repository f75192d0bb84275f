"""A recipe that changed between stopping and resuming: what changed, and whether it may."""

from typing import Any

from pydantic import ValidationError

from emu3_megatron.config import Recipe
from emu3_megatron.errors import InputError

# Fields that decide how fast and where a run goes, not what it learns.
_FREE = (
    *("run", "parallel", "data.workers", "batch.micro_size", "recompute"),
    *("sample", "validation", "guard"),
)
# Of those, what does decide.
_BOUND = ("run.steps", "run.seed")
# Without these a step's samples would no longer follow from its number, or weights would not fit.
_FIXED = ("batch.size", "data.context", "run.seed", "model.layers", "model.hidden")


def check_drift(saved: dict[str, Any], recipe: Recipe, accept: bool) -> list[str]:
    """Compare the recipe of a checkpoint with the one to go on with.

    Args:
        saved: the recipe as the checkpoint holds it; fields it lacks have their defaults.
        accept: take changes of what the run learns.

    Returns:
        One line for each changed field.

    Raises:
        InputError: what the run learns would change and `accept` is not given, or a field changed
            that cannot within a run.
    """
    try:
        before = Recipe.model_validate(saved)
    except ValidationError:
        raise InputError(
            f"{recipe.run.dir}: its checkpoint is of no run that could be resumed; choose another "
            "run.dir, with run.init_from to start from its weights"
        ) from None
    old = _flat(before.model_dump(mode="json"))
    new = _flat(recipe.model_dump(mode="json"))
    changed = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
    lines = [f"{name}: {old.get(name)} → {new.get(name)}" for name in changed]
    semantic = [line for name, line in zip(changed, lines, strict=True) if _is_semantic(name)]
    fixed = [line for name, line in zip(changed, lines, strict=True) if name in _FIXED]
    if fixed:
        raise InputError(
            f"{recipe.run.dir}: cannot change within a run: {', '.join(fixed)}; "
            "choose another run.dir, with run.init_from to keep the weights"
        )
    if semantic and not accept:
        raise InputError(
            f"{recipe.run.dir}: the recipe changed since the checkpoint: {', '.join(semantic)}; "
            "add --accept to go on with the new one"
        )
    return lines


def _is_semantic(name: str) -> bool:
    if name in _BOUND:
        return True
    return not any(name == free or name.startswith(f"{free}.") for free in _FREE)


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings by dotted names; lists are values."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
