"""Large images in bands and long clips in pieces: the same as the whole."""

import pytest
import torch

from emu3_megatron.config.tokenizer import TokenizerNetwork
from emu3_megatron.errors import InputError
from emu3_megatron.vision.tiling import decode_pieces, encode_pieces, in_bands
from emu3_megatron.vision.tokenizer import VisionTokenizer

NETWORKS = {
    "tiny": TokenizerNetwork(preset="tiny"),
    "wide": TokenizerNetwork(preset="tiny", channel_multiplier=(1, 2, 2, 2), num_res_blocks=2),
}


@pytest.fixture(scope="module", params=NETWORKS)
def network(randomise, request):
    return randomise(VisionTokenizer(NETWORKS[request.param]))


@torch.no_grad()
def both_ways(function, network, *inputs, pixels):
    whole = function(*inputs)
    with in_bands(network, pixels):
        banded = function(*inputs)
    assert torch.equal(function(*inputs), whole)  # it ends with the block
    return banded, whole


# Bands of 8 rows at full resolution and whole frames at the lowest; bands of one row of codes.
@pytest.mark.parametrize("pixels", [640, 16])
@pytest.mark.parametrize("size", [(88, 40), (24, 64)])
def test_an_image_in_bands(network, noise, size, pixels):
    images = noise(2, 3, *size)

    banded, whole = both_ways(network.image_latents, network, images, pixels=pixels)

    assert (banded - whole).abs().max() <= 1e-5 * whole.std()
    vectors = network.quantize.lookup(network.quantize.nearest(whole))
    decode = lambda vectors: network.decode_vectors(vectors, frames=1)
    banded, whole = both_ways(decode, network, vectors, pixels=pixels)
    assert (banded - whole).abs().max() <= 1e-5 * whole.std()


def test_a_band_alone_would_leave_a_seam(network, noise):
    images = noise(1, 3, 64, 32)
    with torch.no_grad():
        whole = network.image_latents(images)
        alone = network.image_latents(images[:, :, :48])
    assert (whole[..., :4, :] - alone[..., :4, :]).abs().max() > 1e-2 * whole.std()


@pytest.mark.parametrize("sizes", [(8,) * 9, (3, 1, 2, 29, 5, 32), (71,)])
def test_a_clip_in_pieces(network, noise, sizes):
    clip = noise(1, sum(sizes), 3, 16, 16)

    codes = network.encode_clips(clip)
    in_pieces = torch.cat(list(encode_pieces(network, clip[0].split(sizes))))

    assert torch.equal(in_pieces, codes[0])
    assert codes.unique().numel() > 15


@pytest.mark.parametrize("at_once", [1, 5, 18])
def test_a_decoded_clip_in_pieces(network, at_once):
    codes = torch.randint(512, (18, 2, 3), generator=torch.Generator().manual_seed(0))

    whole = network.decode_clips(codes[None])[0]
    in_pieces = torch.cat(list(decode_pieces(network, codes, at_once)))

    assert (in_pieces - whole).abs().max() <= 1e-5 * whole.std()


def test_too_short_a_clip_in_pieces(network, noise):
    with pytest.raises(InputError, match="3 frames: at least 4"):
        list(encode_pieces(network, noise(1, 3, 3, 16, 16)[0].split(2)))
