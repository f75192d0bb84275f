"""Starts a vision tokenizer from the weights of SBER-MoVQGAN, as Emu3's was.

The 2D weights are taken over. The layers of time are new. Emu3's pass through SiLU, so they cannot
be the identity; but around zero SiLU nearly halves. So ours begin as an identity scaled down to
where that holds, and the layers that read them (quant_conv, the decoder's conv_in and the 1x1
convolutions of its SpatialNorm) scale up again. A still image is then encoded and decoded as by
MoVQGAN, to within about a thousandth.
"""

import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from emu3_megatron.config.tokenizer import TokenizerNetwork
from emu3_megatron.errors import InputError
from emu3_megatron.files import replacing
from emu3_megatron.vision.blocks import SpatialNorm
from emu3_megatron.vision.tokenizer import VisionTokenizer

_REACH = 0.002  # largest input of SiLU; there it is x / 2 to within a thousandth
_SLOPE = 0.5  # of SiLU at zero
_FOLDED = ("quant_conv.", "post_quant_conv.", "quantize.")


def import_movqgan(source: Path, target: Path) -> list[str]:
    """Write a tokenizer folder, to train on, from the file of a SBER-MoVQGAN.

    The codebook is doubled, as Emu3 doubled it from 16,384 to 32,768. How it placed the new codes
    is not published. Ours are copies: no picture changes, and training moves them, unused as they
    are, to where clips need them.
    """
    tokenizer = grow(_read(source), source)
    with replacing(target) as beside:
        tokenizer.save(beside)
    return [f"{target}: a vision tokenizer, for training to start_from"]


@torch.no_grad()
def grow(weights: Mapping[str, Tensor], source: Path) -> VisionTokenizer:
    """The tokenizer that begins as this MoVQGAN. Raises InputError, naming `source`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # of the residual blocks of time
        tokenizer = VisionTokenizer(_network_of(weights, source)).eval()
    _require_shapes(weights, tokenizer, source)
    _take_over(weights, tokenizer)
    codes_ke = weights["quantize.embedding.weight"]
    tokenizer.quantize.embedding.weight.copy_(torch.cat([codes_ke, codes_ke]))
    _join_encoder(weights, tokenizer)
    _join_decoder(weights, tokenizer)
    return tokenizer


def _read(path: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path}: damaged, or not a checkpoint of MoVQGAN ({reason})") from None
    weights = content.get("state_dict", content) if isinstance(content, dict) else {}
    return {name: tensor for name, tensor in weights.items() if isinstance(tensor, Tensor)}


def _network_of(weights: Mapping[str, Tensor], source: Path) -> TokenizerNetwork:
    try:
        base = len(weights["encoder.conv_in.weight"])
        widths = [len(weights[f"encoder.down.{i}.block.0.conv1.weight"]) for i in range(4)]
        codes, embed_dim = weights["quantize.embedding.weight"].flatten(1).shape
        latent = len(weights["encoder.conv_out.weight"])
    except KeyError as missing:
        raise InputError(f"{source}: no MoVQGAN: lacks {missing.args[0]}") from None
    blocks = {name.split(".")[4] for name in weights if name.startswith("encoder.down.0.block.")}
    attention = (i for i in range(4) if f"encoder.down.{i}.attn.0.q.weight" in weights)
    try:
        return TokenizerNetwork(
            codebook_size=2 * codes,
            embed_dim=embed_dim,
            latent_channels=latent,
            base_channels=base,
            channel_multiplier=[width // base for width in widths],
            num_res_blocks=len(blocks),
            attention_levels=tuple(attention),
        )
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(f"{source}: no MoVQGAN: {where}: {first['msg']}") from None


def _require_shapes(
    weights: Mapping[str, Tensor], tokenizer: VisionTokenizer, source: Path
) -> None:
    network = tokenizer.network
    codes, latents = network.embed_dim, network.latent_channels
    expected = {name: ours.shape for name, ours in _flat(tokenizer)} | {
        "quantize.embedding.weight": (network.codebook_size // 2, codes),
        "quant_conv.weight": (codes, latents, 1, 1),
        "quant_conv.bias": (codes,),
        "post_quant_conv.weight": (latents, codes, 1, 1),
        "post_quant_conv.bias": (latents,),
    }
    for name, shape in expected.items():
        if name not in weights or weights[name].shape != shape:
            raise InputError(f"{source}: {name} is missing or of another shape than a MoVQGAN's")


def _flat(tokenizer: VisionTokenizer) -> Iterator[tuple[str, Tensor]]:
    """The weights that work on single frames, alike in both."""
    for name, ours in tokenizer.state_dict().items():
        if ".time_" not in name and not name.startswith(_FOLDED):
            yield name, ours


def _take_over(weights: Mapping[str, Tensor], tokenizer: VisionTokenizer) -> None:
    for name, ours in _flat(tokenizer):
        ours.copy_(weights[name])


def _join_encoder(weights: Mapping[str, Tensor], tokenizer: VisionTokenizer) -> None:
    weight_ez = weights["quant_conv.weight"].flatten(1).double()
    codes_ke = weights["quantize.embedding.weight"].double()
    # The latents that would become codes tell how large latents are.
    latents_kz = (codes_ke - weights["quant_conv.bias"]) @ torch.linalg.pinv(weight_ez).T
    scale = _pass_scaled(tokenizer.encoder.time_conv, latents_kz.abs().max().item())
    _see_newest_frame(tokenizer.quant_conv.conv, weights, "quant_conv")
    tokenizer.quant_conv.conv.weight.div_(scale)


def _join_decoder(weights: Mapping[str, Tensor], tokenizer: VisionTokenizer) -> None:
    """Latents and code vectors share the decoder's layers of time; 2D layers read both."""
    codes_ke = weights["quantize.embedding.weight"]
    latents_kz = codes_ke @ weights["post_quant_conv.weight"].flatten(1).T
    latents_kz = latents_kz + weights["post_quant_conv.bias"]
    largest = max(codes_ke.abs().max().item(), latents_kz.abs().max().item())
    scale = _pass_scaled(tokenizer.decoder.time_conv, largest)
    _see_newest_frame(tokenizer.post_quant_conv.conv, weights, "post_quant_conv")
    tokenizer.decoder.conv_in.weight.div_(scale)
    for module in tokenizer.decoder.modules():
        if isinstance(module, SpatialNorm):
            module.conv_y.weight.div_(scale)
            module.conv_b.weight.div_(scale)


def _see_newest_frame(conv: nn.Conv3d, weights: Mapping[str, Tensor], name: str) -> None:
    """A 1x1 convolution of one frame as one over three, of which the last is now."""
    conv.weight.zero_()
    conv.weight[:, :, -1] = weights[f"{name}.weight"]
    conv.get_parameter("bias").copy_(weights[f"{name}.bias"])


def _pass_scaled(time_convs: nn.ModuleList, largest: float) -> float:
    """Make two layers of time an identity of inputs up to `largest`, scaled; return the scale."""
    first, second = (layer.get_submodule("conv.conv") for layer in time_convs)
    assert isinstance(first, nn.Conv3d)
    assert isinstance(second, nn.Conv3d)
    for conv, factor in ((first, _REACH / largest), (second, 1.0)):
        merged = conv.stride[0]  # the frames of which the mean is taken
        rows, columns = (size // 2 for size in conv.kernel_size[1:])
        conv.weight.zero_()
        for channel in range(conv.in_channels):
            conv.weight[channel, channel, -merged:, rows, columns] = factor / merged
        nn.init.zeros_(conv.get_parameter("bias"))
    return _REACH / largest * _SLOPE**2
