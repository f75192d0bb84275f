"""`emu3 convert verify`: compares transformers' outputs with ours on the same input, in fp32.

transformers loads the folder by itself, its `config.json` too.
"""

import importlib.util
from pathlib import Path

import torch
from torch import Tensor

from emu3_megatron.checkpoints.folders import find_checkpoint, read_checkpoint
from emu3_megatron.checkpoints.folders import verify as require_sound
from emu3_megatron.config import ModelConfig
from emu3_megatron.config.training import DecoderRecipe
from emu3_megatron.errors import InputError
from emu3_megatron.interchange import configs
from emu3_megatron.interchange.as_transformers import TransformersModel
from emu3_megatron.interchange.configs import HubConfig
from emu3_megatron.interchange.decoder import DecoderTable
from emu3_megatron.interchange.layouts import DecoderNames, find_decoder, find_vision
from emu3_megatron.interchange.vision import VisionTable, is_tokenizer
from emu3_megatron.interchange.weights import Weights
from emu3_megatron.model import Inputs, SequenceLayout, build_decoder
from emu3_megatron.model.opening import load_decoder
from emu3_megatron.vision.tokenizer import VisionTokenizer, read_network

_ROWS, _LENGTH = 2, 64


def verify(folder: Path, checkpoint: Path) -> list[str]:
    """Compare a Hugging Face folder with the checkpoint that came from it or gave it.

    Megatron's groups over one process must be there (`parallel.start`). The two decoders are not
    in memory at once, but each is, in fp32.

    Args:
        checkpoint: of ours: a run, a checkpoint, or the folder of a vision tokenizer.

    Returns:
        A line for each model: the largest difference of logits, the share of equal codes.

    Raises:
        InputError: transformers is not installed, one side is damaged, or the two hold different
            models.
    """
    if importlib.util.find_spec("transformers") is None:
        raise InputError("convert verify needs transformers: pip install 'transformers>=5.23'")
    weights = Weights(folder)
    config = HubConfig(folder)
    decoder = None if is_tokenizer(checkpoint) else find_decoder(weights.specs)
    tokenizer = checkpoint if is_tokenizer(checkpoint) else checkpoint / "tokenizer"
    path = None
    if decoder:
        path = find_checkpoint(checkpoint)
        require_sound(path)
        _check_decoder(weights, decoder, config, path)
    vision = is_tokenizer(tokenizer) and find_vision(weights.specs) is not None
    if vision:
        _check_tokenizer(weights, config, tokenizer)
    if path is None and not vision:
        raise InputError(f"{folder} and {checkpoint} hold no model of the same kind")
    lines = _Comparison(folder, config, weights, bool(decoder), vision)
    return [
        *([lines.decoders(path)] if path else []),
        *([lines.tokenizers(tokenizer)] if vision else []),
    ]


def _check_decoder(
    weights: Weights, names: DecoderNames, config: HubConfig, checkpoint: Path
) -> None:
    model = _model_of(checkpoint)
    given = config.decoder(None)
    for field in configs.ARCHITECTURE:
        if getattr(given, field) != getattr(model, field):
            raise InputError(
                f"{weights.folder}: another model than {checkpoint}: {field} is "
                f"{getattr(given, field)} there and {getattr(model, field)} here"
            )
    weights.require(DecoderTable(model, names, torch.float32).theirs)
    if find_vision(weights.specs):
        config.check_together(model, config.vision())


def _check_tokenizer(weights: Weights, config: HubConfig, tokenizer: Path) -> None:
    ours = read_network(tokenizer / "config.json")
    names = find_vision(weights.specs)
    sizes = lambda network: network.model_dump(exclude={"preset"})
    if names is None or sizes(config.vision()) != sizes(ours):
        raise InputError(f"{weights.folder}: another vision tokenizer than {tokenizer}")
    weights.require(VisionTable(ours, names).theirs)


def _model_of(checkpoint: Path) -> ModelConfig:
    return DecoderRecipe.of(checkpoint, read_checkpoint(checkpoint)).model


class _Comparison:
    """Outputs of transformers' model on random input, to be compared with ours.

    Its model is gone when ours is loaded.
    """

    @torch.no_grad()
    def __init__(
        self, folder: Path, config: HubConfig, weights: Weights, decoder: bool, vision: bool
    ):
        theirs = TransformersModel(folder, config, weights)
        generator = torch.Generator().manual_seed(0)
        if decoder:
            size = config.decoder(None).vocabulary().size
            self.tokens_bs = torch.randint(size, (_ROWS, _LENGTH), generator=generator)
            self.logits_bsv = theirs.logits(self.tokens_bs)
        generator.manual_seed(0)
        self.images = torch.rand(2, 3, 64, 48, generator=generator) * 2 - 1
        self.clips = torch.rand(1, 8, 3, 64, 48, generator=generator) * 2 - 1
        if vision:
            repeated = self.images[:, None].expand(-1, 4, -1, -1, -1)
            self.image_codes = theirs.codes(repeated)[:, 0]
            self.clip_codes = theirs.codes(self.clips)

    @torch.no_grad()
    def decoders(self, checkpoint: Path) -> str:
        ours_bsv = _our_logits(checkpoint, _model_of(checkpoint), self.tokens_bs)
        difference = (self.logits_bsv - ours_bsv).abs().max().item()
        return (
            f"decoder: largest logit difference {difference:.2e} over {self.tokens_bs.numel()} "
            f"random tokens, among logits up to {self.logits_bsv.abs().max().item():.2f}"
        )

    @torch.no_grad()
    def tokenizers(self, tokenizer: Path) -> str:
        ours = VisionTokenizer.load(tokenizer).float()
        images = _share(ours.encode_images(self.images), self.image_codes)
        clips = _share(ours.encode_clips(self.clips), self.clip_codes)
        return f"vision tokenizer: {images:.2%} of image codes equal, {clips:.2%} of a clip's"


def _our_logits(checkpoint: Path, model: ModelConfig, tokens_bs: Tensor) -> Tensor:
    decoder = build_decoder(model, seed=None).eval()
    load_decoder(checkpoint, decoder)
    device = next(decoder.parameters()).device
    rows, length = tokens_bs.shape
    inputs = Inputs(
        tokens_bs,
        torch.arange(length).expand(rows, -1),
        SequenceLayout.of_documents([[0, length]] * rows),
    )
    return decoder(inputs.to(device), "logits").cpu()


def _share(one: Tensor, other: Tensor) -> float:
    return (one == other).double().mean().item()
