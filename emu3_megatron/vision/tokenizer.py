"""The vision tokenizer: images and clips to grids of codes, and back."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Self

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from emu3_megatron.config.tokenizer import TokenizerNetwork
from emu3_megatron.errors import InputError
from emu3_megatron.files import replacing, write_json
from emu3_megatron.media.images import scaled
from emu3_megatron.vision.decoder import Decoder
from emu3_megatron.vision.encoder import Encoder
from emu3_megatron.vision.initialization import initialise
from emu3_megatron.vision.quantizer import VectorQuantizer
from emu3_megatron.vision.temporal import CausalConv3d

SPATIAL_FACTOR = 8
TEMPORAL_FACTOR = 4
FORMAT = "emu3-megatron/vision-tokenizer"
# Pixels through the 2D networks at once; frames are independent there. A CPU's caches hold few: 4
# frames of 256x256 one by one take two thirds of the time of all at once. For gradients few, so
# that what a block computes again in backward stays small.
_ON_CPU, _ON_GPU, _FOR_GRADIENTS = 2**16, 4 * 720 * 720, 512 * 512


class VisionTokenizer(nn.Module):
    """Emu3's tokenizer: 8x8 pixels of an image, or of 4 frames of a clip, become one code.

    Pixels are floats in [-1, 1] or uint8, sides divisible by 8; codes are int64 in
    [0, codebook_size).
    Encoding and decoding need eval mode: in train mode BatchNorm would make the codes of one image
    depend on the others in its batch.
    """

    spatial_factor = SPATIAL_FACTOR
    temporal_factor = TEMPORAL_FACTOR

    def __init__(self, network: TokenizerNetwork):
        super().__init__()
        self.network = network
        self.encoder = Encoder(network)
        self.decoder = Decoder(network)
        self.quantize = VectorQuantizer(network.codebook_size, network.embed_dim)
        self.quant_conv = CausalConv3d(network.latent_channels, network.embed_dim, (3, 1, 1))
        self.post_quant_conv = CausalConv3d(network.embed_dim, network.latent_channels, (3, 1, 1))
        initialise(self.encoder, self.decoder, self.quant_conv, self.post_quant_conv)

    @torch.no_grad()
    def encode_images(self, pixels_bchw: Tensor) -> Tensor:
        """Codes [b, h / 8, w / 8] of pixels [b, 3, h, w]."""
        self._require_eval()
        return self.quantize.nearest(self.image_latents(pixels_bchw)).squeeze(1)

    @torch.no_grad()
    def decode_images(self, codes_bhw: Tensor) -> Tensor:
        """Pixels [b, 3, 8h, 8w] of codes [b, h, w]; they may leave [-1, 1] a little."""
        self._require_eval()
        return self.decode_vectors(self.quantize.lookup(codes_bhw.unsqueeze(1)), frames=1).squeeze(
            1
        )

    @torch.no_grad()
    def encode_clips(self, pixels_btchw: Tensor, independent_groups: bool = False) -> Tensor:
        """Codes [b, t // 4, h / 8, w / 8] of pixels [b, t, 3, h, w].

        Frames after the last whole four are left out, fewer than 4 are an InputError. The whole
        clip goes through in one call, causally. With `independent_groups` every 4 frames
        are a clip of their own, as in the published script; decode them the same way.
        """
        self._require_eval()
        if not independent_groups:
            return self.quantize.nearest(self.clip_latents(pixels_btchw))
        batch = len(pixels_btchw)
        groups = _whole_groups(pixels_btchw).unflatten(1, (-1, TEMPORAL_FACTOR)).flatten(0, 1)
        codes = self.quantize.nearest(self.clip_latents(groups))
        return codes.squeeze(1).unflatten(0, (batch, -1))

    @torch.no_grad()
    def decode_clips(self, codes_bfhw: Tensor, independent_groups: bool = False) -> Tensor:
        """Pixels [b, 4f, 3, 8h, 8w] of codes [b, f, h, w]."""
        self._require_eval()
        batch = len(codes_bfhw)
        if independent_groups:
            codes_bfhw = codes_bfhw.flatten(0, 1).unsqueeze(1)
        pixels_btchw = self.decode_vectors(self.quantize.lookup(codes_bfhw))
        return pixels_btchw.flatten(0, 1).unflatten(0, (batch, -1))

    def image_latents(self, pixels_bchw: Tensor) -> Tensor:
        """Latents [b, c, 1, h / 8, w / 8] before quantization.

        An image is a frame repeated 4 times; the 2D network, blind to time, runs on it once.
        """
        frame_bchw = self.frame_latents(pixels_bchw)
        return self.merge_frames(frame_bchw.unsqueeze(2).expand(-1, -1, TEMPORAL_FACTOR, -1, -1))

    def clip_latents(self, pixels_btchw: Tensor) -> Tensor:
        """Latents [b, c, t // 4, h / 8, w / 8] before quantization."""
        pixels_btchw = _whole_groups(pixels_btchw)
        frames_nchw = self.frame_latents(pixels_btchw.flatten(0, 1))
        return self.merge_frames(frames_nchw.unflatten(0, pixels_btchw.shape[:2]).transpose(1, 2))

    def decode_vectors(self, vectors_bcfhw: Tensor, frames: int | None = None) -> Tensor:
        """Pixels [b, t, 3, 8h, 8w] of code vectors: all 4f frames, or only the first `frames`."""
        latent_bcthw, code_bcthw = self.stretch_vectors(vectors_bcfhw)
        return self.frame_pixels(latent_bcthw[:, :, :frames], code_bcthw[:, :, :frames])

    def frame_latents(self, pixels_nchw: Tensor) -> Tensor:
        """[n, c, h / 8, w / 8] of pixels [n, 3, h, w], each frame on its own."""
        height, width = pixels_nchw.shape[-2:]
        if height % SPATIAL_FACTOR or width % SPATIAL_FACTOR:
            raise InputError(
                f"{width}x{height} pixels: sides must be divisible by {SPATIAL_FACTOR}"
            )
        pixels_nchw = pixels_nchw.to(self.quantize.embedding.weight.device)
        return _in_chunks(self._encode_frames, pixels_nchw, pixels_each=height * width)

    def _encode_frames(self, pixels_nchw: Tensor) -> Tensor:
        return self.encoder.encode_frames(scaled(pixels_nchw).to(self.quantize.embedding.weight))

    def merge_frames(self, frames_bcthw: Tensor) -> Tensor:
        """Latents [b, c, t // 4, h, w] before quantization, of those of frames."""
        return self.quant_conv(self.encoder.shorten_time(frames_bcthw))

    def stretch_vectors(self, vectors_bcfhw: Tensor) -> tuple[Tensor, Tensor]:
        """Of code vectors what each of the 4f frames is decoded from: latents and code vectors."""
        return self.decoder.stretch_time(self.post_quant_conv(vectors_bcfhw), vectors_bcfhw)

    def frame_pixels(self, latent_bcthw: Tensor, code_bcthw: Tensor) -> Tensor:
        """Pixels [b, t, 3, 8h, 8w], each frame on its own."""
        batch, _, frames, height, width = latent_bcthw.shape
        pixels_nchw = _in_chunks(
            self.decoder.decode_frames,
            *(x.transpose(1, 2).flatten(0, 1) for x in (latent_bcthw, code_bcthw)),
            pixels_each=height * width * SPATIAL_FACTOR**2,
        )
        return pixels_nchw.unflatten(0, (batch, frames))

    def _require_eval(self) -> None:
        if self.training:
            raise RuntimeError(
                "the tokenizer is in train mode: call eval() before it encodes or decodes"
            )

    def save(self, folder: str | Path) -> None:
        """Write `config.json` and `model.safetensors` into `folder`, each whole or not at all."""
        folder = Path(folder)
        weights = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
        with replacing(folder / "model.safetensors") as beside:
            save_file(weights, beside, metadata={"format": "pt"})
        write_json(folder / "config.json", {"format": FORMAT, **self.network.model_dump()})

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read what `save` wrote, in eval mode, on the CPU. Raises InputError, naming the file."""
        folder = Path(folder)
        with torch.device("meta"):  # no time lost on random weights
            tokenizer = cls(read_network(folder / "config.json"))
        weights = _read_weights(folder / "model.safetensors")
        try:
            tokenizer.load_state_dict(weights, assign=True)
        except RuntimeError:
            raise InputError(
                f"{folder / 'model.safetensors'}: not the weights that config.json describes"
            ) from None
        return tokenizer.eval()


def require_whole_group(frames: int) -> None:
    """Raises InputError where a clip has too few frames for one latent."""
    if frames < TEMPORAL_FACTOR:
        raise InputError(f"a clip of {frames} frames: at least {TEMPORAL_FACTOR} are needed")


def _whole_groups(pixels_btchw: Tensor) -> Tensor:
    frames = pixels_btchw.shape[1]
    require_whole_group(frames)
    return pixels_btchw[:, : frames - frames % TEMPORAL_FACTOR]


def _in_chunks(function: Callable[..., Tensor], *tensors: Tensor, pixels_each: int) -> Tensor:
    """Apply to a few frames at a time: a long clip needs hardly more memory than a short one."""
    at_once = _ON_CPU if tensors[0].device.type == "cpu" else _ON_GPU
    if torch.is_grad_enabled():
        at_once = _FOR_GRADIENTS
    frames = max(1, at_once // pixels_each)
    if frames >= len(tensors[0]):
        return function(*tensors)
    chunks = zip(*(tensor.split(frames) for tensor in tensors), strict=True)
    return torch.cat([function(*chunk) for chunk in chunks])


def read_network(path: Path) -> TokenizerNetwork:
    """The network that a tokenizer's `config.json` describes. Raises InputError."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        inside = path.parent / "tokenizer"  # where a training run leaves it
        way = f"name {inside}" if (inside / path.name).is_file() else "is this a tokenizer?"
        raise InputError(f"{path}: cannot be read ({error.strerror}); {way}") from None
    except ValueError:
        raise InputError(f"{path}: not JSON") from None
    if not isinstance(values, dict) or values.pop("format", None) != FORMAT:
        raise InputError(f"{path}: not a tokenizer of this project (no format {FORMAT!r})")
    try:
        return TokenizerNetwork(**values)
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: damaged or not a safetensors file ({error})") from None
