"""SBER-MoVQGAN, the image tokenizer out of which Emu3's grew, as a starting point of training.

The 2D weights are taken over as they are. The layers of time are new. Emu3's pass through SiLU, so
they cannot be the identity; but around 1.5 SiLU is nearly straight. So ours begin as the identity
scaled into that stretch, and the layers that touch them (quant_conv, post_quant_conv, the decoder's
conv_in and the 1x1 convolutions of its SpatialNorm) undo scale and shift. A still image is then
encoded and decoded as MoVQGAN does it, but for rounding and for the outermost latents, where the
zeros that pad conv_in are no longer its zeros.
"""

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from emu3_megatron.config.tokenizer import TokenizerNetwork
from emu3_megatron.errors import InputError
from emu3_megatron.files import replacing
from emu3_megatron.vision.blocks import SpatialNorm
from emu3_megatron.vision.tokenizer import VisionTokenizer

_CENTRE = torch.tensor(1.5, dtype=torch.float64)  # of SiLU's straight stretch
_REACH = 0.1  # how far to its sides: SiLU is straight there to within one percent
_LEVEL = nn.functional.silu(_CENTRE).item()
_SLOPE = torch.func.grad(nn.functional.silu)(_CENTRE).item()
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
    _take_over(weights, tokenizer, source)
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
        codes, embed_dim = weights["quantize.embedding.weight"].shape
        latent = len(weights["encoder.conv_out.weight"])
    except KeyError as missing:
        raise InputError(f"{source}: no MoVQGAN: lacks {missing.args[0]}") from None
    blocks = {name.split(".")[4] for name in weights if name.startswith("encoder.down.0.block.")}
    attention = (i for i in range(4) if f"encoder.down.{i}.attn.0.q.weight" in weights)
    return TokenizerNetwork(
        codebook_size=2 * codes,
        embed_dim=embed_dim,
        latent_channels=latent,
        base_channels=base,
        channel_multiplier=[width // base for width in widths],
        num_res_blocks=len(blocks),
        attention_levels=tuple(attention),
    )


def _take_over(weights: Mapping[str, Tensor], tokenizer: VisionTokenizer, source: Path) -> None:
    for name, ours in tokenizer.state_dict().items():
        if ".time_" in name or name.startswith(_FOLDED):
            continue
        if name not in weights or weights[name].shape != ours.shape:
            raise InputError(f"{source}: {name} is missing or of another shape than a MoVQGAN's")
        ours.copy_(weights[name])


def _join_encoder(weights: Mapping[str, Tensor], tokenizer: VisionTokenizer) -> None:
    """quant_conv reads what the new layers of time say: level + scale * (latent - centre)."""
    weight_ez = weights["quant_conv.weight"].flatten(1).double()
    bias_e = weights["quant_conv.bias"].double()
    codes_ke = weights["quantize.embedding.weight"].double()
    # The latents that would be codes tell where latents lie.
    latents_kz = (codes_ke - bias_e) @ torch.linalg.pinv(weight_ez).T
    centre_z, scale = _pass_straight(tokenizer.encoder.time_conv, latents_kz)
    conv = tokenizer.quant_conv.conv
    conv.weight.zero_()
    conv.weight[:, :, -1, 0, 0] = weight_ez  # the newest frame
    conv.get_parameter("bias").copy_(bias_e)
    _undo(conv, centre_z, scale)


def _join_decoder(weights: Mapping[str, Tensor], tokenizer: VisionTokenizer) -> None:
    """Latents and code vectors share the decoder's layers of time; 2D layers read both."""
    conv = tokenizer.post_quant_conv.conv
    conv.weight.zero_()
    conv.weight[:, :, -1, 0, 0] = weights["post_quant_conv.weight"].flatten(1)
    conv.get_parameter("bias").copy_(weights["post_quant_conv.bias"])
    codes_ke = weights["quantize.embedding.weight"].double()
    latents_kz = codes_ke @ weights["post_quant_conv.weight"].flatten(1).T.double()
    latents_kz += weights["post_quant_conv.bias"].double()
    both = torch.cat([codes_ke, latents_kz])
    centre_z, scale = _pass_straight(tokenizer.decoder.time_conv, both)
    _undo(tokenizer.decoder.conv_in, centre_z, scale)
    for module in tokenizer.decoder.modules():
        if isinstance(module, SpatialNorm):
            _undo(module.conv_y, centre_z, scale)
            _undo(module.conv_b, centre_z, scale)


def _pass_straight(time_convs: nn.ModuleList, values_kz: Tensor) -> tuple[Tensor, float]:
    """Make two layers of time the identity, brought into SiLU's straight stretch.

    Args:
        values_kz: where inputs lie.

    Returns:
        Centre [z] and scale: what goes in as x comes out as level + scale * (x - centre).
    """
    centre_z = (values_kz.amax(0) + values_kz.amin(0)) / 2
    scale = _REACH / (values_kz - centre_z).abs().max().item()
    first, second = (layer.get_submodule("conv.conv") for layer in time_convs)
    assert isinstance(first, nn.Conv3d)
    assert isinstance(second, nn.Conv3d)
    for conv, factor in ((first, scale), (second, 1.0)):
        merged = conv.stride[0]  # the frames of which the mean is taken
        rows, columns = (size // 2 for size in conv.kernel_size[1:])
        conv.weight.zero_()
        for channel in range(len(centre_z)):
            conv.weight[channel, channel, -merged:, rows, columns] = factor / merged
    first.get_parameter("bias").copy_(_CENTRE - scale * centre_z)
    nn.init.constant_(second.get_parameter("bias"), _CENTRE.item() - _LEVEL)
    return centre_z, scale * _SLOPE**2


def _undo(conv: nn.Conv2d | nn.Conv3d, centre_z: Tensor, scale: float) -> None:
    """Let a convolution read level + scale * (x - centre) as x."""
    weight = conv.weight.double() / scale
    shift_z = (scale * centre_z - _LEVEL).view(1, -1, *[1] * (weight.ndim - 2))
    conv.get_parameter("bias").add_((weight * shift_z).sum(tuple(range(1, weight.ndim))))
    conv.weight.copy_(weight)
