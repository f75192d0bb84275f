"""Opens the decoder of a checkpoint for use, without any training code."""

from pathlib import Path
from typing import Any

from megatron.core import dist_checkpointing

from emu3_megatron.checkpoints.folders import find_checkpoint, read_checkpoint, verify
from emu3_megatron.config import ModelConfig
from emu3_megatron.config.training import (
    BackendConfig,
    DecoderRecipe,
    ParallelConfig,
    require_decoder,
)
from emu3_megatron.errors import InputError
from emu3_megatron.model.decoder import Decoder, build_decoder
from emu3_megatron.parallel import Mesh
from emu3_megatron.parallel.groups import token_group
from emu3_megatron.parallel.votes import on_first_rank

# Under which a checkpoint holds the moving average of its weights, where the run keeps one.
AVERAGE = "average."

_ARCHITECTURE = ("layers", "hidden", "heads", "kv_heads", "ffn", "rope_base", "norm_epsilon")


def open_decoder(
    path: Path, mesh: Mesh, backend: BackendConfig | None = None
) -> tuple[Decoder, DecoderRecipe]:
    """The decoder of a checkpoint, on this mesh's tensor parallel ranks, with its recipe.

    Args:
        path: a run, a folder of checkpoints, or a checkpoint.

    Raises:
        InputError: no checkpoint there, or a damaged one.
    """
    path = find_checkpoint(path)
    verify(path)
    recipe = DecoderRecipe.of(path, read_checkpoint(path))
    parallel = ParallelConfig(tensor=mesh.tensor_size, context=mesh.context_size)
    bf16 = recipe.precision == "bf16"
    decoder = build_decoder(recipe.model, parallel, seed=None, bf16=bf16, backend=backend)
    load_decoder(path, decoder)
    return decoder.eval(), recipe


def find_weights(path: Path, model: ModelConfig) -> Path:
    """The checkpoint there, proven whole and of this model; a call on every rank.

    Args:
        path: a run, a folder of checkpoints, or a checkpoint.

    Raises:
        InputError: none is there, it is damaged, or of another model.
    """
    path = on_first_rank(lambda: find_checkpoint(path))
    check_model(path, read_checkpoint(path), model)
    verify(path)
    return path


def load_decoder(path: Path, decoder: Decoder) -> None:
    """Fill a decoder's weights from a checkpoint of any layout and layer spec."""
    state = {"model": sharded_weights(decoder)}
    decoder.load_state_dict(dist_checkpointing.load(state, str(path))["model"])


def sharded_weights(decoder: Decoder, metadata: dict[str, Any] | None = None) -> dict[str, Any]:
    """Where in a checkpoint each of the decoder's tensors lies.

    Args:
        metadata: Megatron's, of the optimizer's format.
    """
    return decoder.sharded_state_dict(metadata={"dp_cp_group": token_group(), **(metadata or {})})


def check_model(path: Path, about: dict[str, Any], model: ModelConfig) -> None:
    """Raise InputError unless the checkpoint holds this very model.

    Args:
        about: what the checkpoint's manifest says.
    """
    require_decoder(path, about)
    saved = ModelConfig.model_validate(about["recipe"]["model"])
    for field in _ARCHITECTURE:
        if getattr(saved, field) != getattr(model, field):
            raise InputError(
                f"{path}: a checkpoint of another model: model.{field} is {getattr(saved, field)} "
                f"there and {getattr(model, field)} in the recipe; choose another run.dir"
            )
    if about["vocabulary"] != model.vocabulary().fingerprint():
        raise InputError(f"{path}: a checkpoint of another vocabulary; choose another run.dir")
