"""Builds a tokenizer's trainer: the networks that a recipe describes, as they are before step 1."""

import dataclasses
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from emu3_megatron.config.tokenizer import TokenizerNetwork
from emu3_megatron.config.tokenizer_losses import AdversarialConfig, LossConfig
from emu3_megatron.config.tokenizer_training import TokenizerRecipe
from emu3_megatron.errors import InputError
from emu3_megatron.parallel import Mesh
from emu3_megatron.tokenizer_training.adversarial.networks import Discriminators
from emu3_megatron.tokenizer_training.adversarial.terms import LeCam
from emu3_megatron.tokenizer_training.forward import Networks
from emu3_megatron.tokenizer_training.initialization import start_from_principal_components
from emu3_megatron.tokenizer_training.kmeans import FAR_AWAY
from emu3_megatron.tokenizer_training.losses.entropy import MeanProbabilities
from emu3_megatron.tokenizer_training.losses.perceptual import build_perceptual
from emu3_megatron.tokenizer_training.samples import Samples
from emu3_megatron.tokenizer_training.trainer import TokenizerTrainer
from emu3_megatron.vision.recompute import recompute_blocks
from emu3_megatron.vision.tokenizer import VisionTokenizer

_LOOKED_AT = 32  # samples, before the first step


def build_trainer(
    recipe: TokenizerRecipe,
    samples: Samples,
    mesh: Mesh,
    report: Callable[[int, list[str]], None],
    is_new: bool = True,
) -> TokenizerTrainer:
    """The trainer before the first step; a call on every rank.

    Args:
        report: see `TokenizerTrainer`.
        is_new: otherwise a checkpoint's weights will replace these, and run.init_from is not read.

    Raises:
        InputError: run.init_from cannot be read, or is another network.
    """
    mesh.seed(recipe.run.seed, 0)
    init_from = recipe.run.init_from if is_new else None
    tokenizer, old_codes = _tokenizer(recipe.network, init_from, recipe.trained)
    if recipe.trained != "all":
        tokenizer.requires_grad_(False)
        tokenizer.decoder.requires_grad_(True)
        tokenizer.post_quant_conv.requires_grad_(True)
    tokenizer = tokenizer.to(mesh.device).eval()
    recompute_blocks(tokenizer, recipe.recompute)
    if is_new and not recipe.run.init_from:
        start_from_principal_components(tokenizer.encoder, list(_first_frames(samples)))
        _same_on_all_ranks(tokenizer)
    networks = _judged(tokenizer, recipe.loss, recipe.network.codebook_size, mesh.device)
    networks = dataclasses.replace(networks, bf16=recipe.precision == "bf16")
    if recipe.adversarial:
        has_clips = recipe.data.share_of_clips > 0
        networks = _with_discriminators(networks, recipe.adversarial, has_clips, mesh.device)
    return TokenizerTrainer(
        recipe, networks, old_codes=old_codes, files=len(samples.paths), report=report
    )


def _tokenizer(
    network: TokenizerNetwork, init_from: Path | None, trained: str
) -> tuple[VisionTokenizer, int]:
    """The tokenizer before the first step, and how many old codes new ones join."""
    if init_from is None:
        return VisionTokenizer(network), 0
    given = _open(init_from)
    old_codes = given.network.codebook_size if trained == "new_codes" else 0
    if old_codes:
        given = _with_new_codes(given, network, init_from)
    elif not _is_same(given.network, network):
        raise InputError(
            f"run.init_from={init_from}: another network than the recipe's; set network to that "
            "of its config.json"
        )
    return given, old_codes


def _open(path: Path) -> VisionTokenizer:
    inside = path / "tokenizer"
    return VisionTokenizer.load(inside if (inside / "config.json").is_file() else path)


def _with_new_codes(
    given: VisionTokenizer, wanted: TokenizerNetwork, init_from: Path
) -> VisionTokenizer:
    """The tokenizer with a larger book, whose new codes are out of use until they are placed."""
    old = given.network.codebook_size
    if not _is_same(given.network, wanted, besides={"codebook_size"}):
        raise InputError(
            f"run.init_from={init_from}: another network than the recipe's besides its codes; set "
            "network to that of its config.json, with more codes"
        )
    if wanted.codebook_size <= old:
        raise InputError(
            f"network.codebook_size={wanted.codebook_size:,}: run.init_from has {old:,} codes; "
            "trained=new_codes needs more"
        )
    tokenizer = VisionTokenizer(wanted)
    book = torch.full_like(tokenizer.quantize.embedding.weight.data, FAR_AWAY)
    book[:old] = given.quantize.embedding.weight
    tokenizer.load_state_dict({**given.state_dict(), "quantize.embedding.weight": book})
    return tokenizer


def _is_same(one: TokenizerNetwork, other: TokenizerNetwork, besides: Collection[str] = ()) -> bool:
    left, right = (network.model_dump(exclude={"preset", *besides}) for network in (one, other))
    return left == right


def _first_frames(samples: Samples) -> Iterator[torch.Tensor]:
    for index in range(_LOOKED_AT):
        pixels = samples.read(index).pixels
        if pixels is not None:
            yield pixels.view(-1, *pixels.shape[-3:])


def _same_on_all_ranks(network: nn.Module) -> None:
    for tensor in (*network.parameters(), *network.buffers()):
        dist.broadcast(tensor.data, 0)


def _judged(
    tokenizer: VisionTokenizer, loss: LossConfig, codes: int, device: torch.device
) -> Networks:
    """The tokenizer with the terms that need no discriminator."""
    return Networks(
        tokenizer,
        loss.weights,
        perceptual=build_perceptual(loss.perceptual, device),
        perceptual_weight=loss.perceptual.weight,
        entropy=loss.entropy,
        probabilities=MeanProbabilities(codes).to(device) if loss.entropy else None,
    )


def _with_discriminators(
    networks: Networks, section: AdversarialConfig, has_clips: bool, device: torch.device
) -> Networks:
    discriminators = Discriminators(section, has_clips).to(device)
    _same_on_all_ranks(discriminators)
    lecam = LeCam().to(device) if section.lecam else None
    return dataclasses.replace(
        networks, discriminators=discriminators, lecam=lecam, lecam_weight=section.lecam
    )
