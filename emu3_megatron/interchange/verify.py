"""`emu3 convert verify`: compares transformers' outputs with ours on the same input, in fp32."""

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
from emu3_megatron.interchange.configs import HubConfig
from emu3_megatron.interchange.decoder import DecoderTable
from emu3_megatron.interchange.layouts import ALONE, DecoderNames, find_decoder, find_vision
from emu3_megatron.interchange.vision import VisionTable, is_tokenizer
from emu3_megatron.interchange.weights import Weights
from emu3_megatron.model import Inputs, SequenceLayout, build_decoder
from emu3_megatron.model.opening import load_decoder
from emu3_megatron.vision.tokenizer import VisionTokenizer

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
    lines = []
    tokenizer = checkpoint
    if not is_tokenizer(checkpoint):
        path = find_checkpoint(checkpoint)
        tokenizer = checkpoint / "tokenizer"
        if names := find_decoder(weights.specs):
            require_sound(path)
            lines.append(_compare_decoders(weights, names, config, path))
    if is_tokenizer(tokenizer) and find_vision(weights.specs):
        lines.append(_compare_tokenizers(weights, config, tokenizer))
    if not lines:
        raise InputError(f"{folder} and {checkpoint} hold no model of the same kind")
    return lines


@torch.no_grad()
def _compare_decoders(
    weights: Weights, names: DecoderNames, config: HubConfig, checkpoint: Path
) -> str:
    model = DecoderRecipe.of(checkpoint, read_checkpoint(checkpoint)).model
    given = config.decoder(None)
    for field in configs.ARCHITECTURE:
        if getattr(given, field) != getattr(model, field):
            raise InputError(
                f"{weights.folder}: another model than {checkpoint}: {field} is "
                f"{getattr(given, field)} there and {getattr(model, field)} here"
            )
    weights.require(DecoderTable(model, names, torch.float32).theirs)
    generator = torch.Generator().manual_seed(0)
    size = model.vocabulary().size
    tokens_bs = torch.randint(size, (_ROWS, _LENGTH), generator=generator)
    theirs_bsv = _their_logits(weights, names, model, tokens_bs)
    ours_bsv = _our_logits(checkpoint, model, tokens_bs)
    difference = (theirs_bsv - ours_bsv).abs().max().item()
    return (
        f"decoder: largest logit difference {difference:.2e} over {tokens_bs.numel()} random "
        f"tokens, among logits up to {theirs_bsv.abs().max().item():.2f}"
    )


def _their_logits(
    weights: Weights, names: DecoderNames, model: ModelConfig, tokens_bs: Tensor
) -> Tensor:
    from transformers import Emu3ForCausalLM, Emu3TextConfig

    values = configs.decoder_config(model, torch.float32, _LENGTH, "transformers")
    rename = lambda name: (
        "lm_head.weight"
        if name == names.head
        else (ALONE.decoder.body + name.removeprefix(names.body))
    )
    theirs = Emu3ForCausalLM.from_pretrained(
        None,
        config=Emu3TextConfig(**values),
        state_dict={rename(name): weights[name] for name in names.among(weights.specs)},
        dtype=torch.float32,
    )
    return theirs.eval()(tokens_bs).logits


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


@torch.no_grad()
def _compare_tokenizers(weights: Weights, config: HubConfig, tokenizer: Path) -> str:
    from transformers import Emu3VQVAE, Emu3VQVAEConfig

    ours = VisionTokenizer.load(tokenizer).float()
    names = find_vision(weights.specs)
    sizes = lambda network: network.model_dump(exclude={"preset"})
    if names is None or sizes(config.vision()) != sizes(ours.network):
        raise InputError(f"{weights.folder}: another vision tokenizer than {tokenizer}")
    source, plain = VisionTable(ours.network, names), VisionTable(ours.network, ALONE.vision)
    weights.require(source.theirs)
    theirs = Emu3VQVAE(
        Emu3VQVAEConfig(**configs.vision_config(ours.network, torch.float32, "transformers"))
    ).float()
    theirs.load_state_dict(
        {
            theirs_name: weights[name].view(shape)
            for (theirs_name, shape), name in zip(plain.theirs.items(), source.theirs, strict=True)
        }
    )
    theirs.eval()
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, 64, 48, generator=generator) * 2 - 1
    clips = torch.rand(1, 8, 3, 64, 48, generator=generator) * 2 - 1
    repeated = images[:, None].expand(-1, 4, -1, -1, -1)
    image_share = _share(ours.encode_images(images), _their_codes(theirs, repeated)[:, 0])
    clip_share = _share(ours.encode_clips(clips), _their_codes(theirs, clips))
    return f"vision tokenizer: {image_share:.2%} of image codes equal, {clip_share:.2%} of a clip's"


def _their_codes(model: "torch.nn.Module", pixels_btchw: Tensor) -> Tensor:
    """Around transformers' own `encode`, which crops clips by (time, height)."""
    latents_bcfhw = model.quant_conv(model.encoder(pixels_btchw).transpose(1, 2))  # type: ignore[operator]
    return model.quantize(latents_bcfhw.transpose(1, 2))  # type: ignore[operator]


def _share(one: Tensor, other: Tensor) -> float:
    return (one == other).double().mean().item()
