"""A tokenizer that grows out of SBER-MoVQGAN begins as MoVQGAN."""

import pytest
import torch
from torch import nn

from emu3_megatron.config.tokenizer import TokenizerNetwork
from emu3_megatron.errors import InputError
from emu3_megatron.interchange.importing import import_folder
from emu3_megatron.vision.decoder import Decoder
from emu3_megatron.vision.encoder import Encoder
from emu3_megatron.vision.tokenizer import VisionTokenizer

SMALL = TokenizerNetwork(
    codebook_size=512, base_channels=32, channel_multiplier=(1, 1, 2, 2), num_res_blocks=1
)


class MoVQGAN(nn.Module):
    """The image tokenizer: the same 2D networks, and 1x1 convolutions around the codes."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = Encoder(SMALL), Decoder(SMALL)
        self.quantize = nn.Module()
        self.quantize.embedding = nn.Embedding(256, 4)
        self.quant_conv = nn.Conv2d(4, 4, 1)
        self.post_quant_conv = nn.Conv2d(4, 4, 1)

    def latents(self, pixels_nchw: torch.Tensor) -> torch.Tensor:
        return self.quant_conv(self.encoder.encode_frames(pixels_nchw))

    def decode(self, codes_nhw: torch.Tensor) -> torch.Tensor:
        vectors_nchw = self.quantize.embedding(codes_nhw).movedim(-1, 1)
        return self.decoder.decode_frames(self.post_quant_conv(vectors_nchw), vectors_nchw)


@pytest.fixture(scope="module")
def movqgan() -> MoVQGAN:
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)  # of the biases
    model = MoVQGAN().eval()
    for name, tensor in model.state_dict().items():
        if "norm" in name and tensor.ndim == 1:
            tensor.normal_(1.0, 0.3, generator=generator)
        elif tensor.is_floating_point() and tensor.ndim > 1:
            tensor.normal_(0, 1.2 * tensor[0].numel() ** -0.5, generator=generator)
    with torch.no_grad():  # codes where latents lie
        latents_nchw = model.latents(pixels(4))
        codes_kc = latents_nchw.movedim(1, -1).flatten(0, -2)
        chosen = torch.randperm(len(codes_kc), generator=generator)[:256]
        model.quantize.embedding.weight.copy_(codes_kc[chosen])
    return model


def pixels(count: int) -> torch.Tensor:
    return torch.rand(count, 3, 96, 96, generator=torch.Generator().manual_seed(2)) * 2 - 1


@pytest.fixture(scope="module")
def file(movqgan, tmp_path_factory):
    """As published: without layers of time, with what its training needed besides."""
    weights = {n: t for n, t in movqgan.state_dict().items() if ".time_" not in n}
    path = tmp_path_factory.mktemp("movqgan") / "movqgan_270M.ckpt"
    torch.save({**weights, "loss.logvar": torch.zeros(())}, path)
    return path


@pytest.fixture(scope="module")
def grown(file, tmp_path_factory) -> VisionTokenizer:
    folder = tmp_path_factory.mktemp("grown") / "tokenizer"
    import_folder(file, folder)
    return VisionTokenizer.load(folder)


def test_its_network_is_found_in_its_shapes(grown):
    assert grown.network == SMALL


def test_2d_weights_are_taken_over(grown, movqgan):
    theirs = movqgan.state_dict()
    joined = ("conv_y", "conv_b", "decoder.conv_in")  # these scale back what time scaled down
    for name, tensor in grown.state_dict().items():
        if name in theirs and ".time_" not in name and not name.startswith(("quant", "post_")):
            same = torch.equal(tensor, theirs[name])
            assert same or any(part in name for part in joined), name


def test_the_codebook_is_there_twice(grown, movqgan):
    codes_kc = movqgan.quantize.embedding.weight
    assert torch.equal(grown.quantize.embedding.weight, torch.cat([codes_kc, codes_kc]))


@torch.no_grad()
def test_an_image_keeps_its_latents(grown, movqgan):
    expected = movqgan.latents(pixels(2))

    error = (grown.image_latents(pixels(2))[:, :, 0] - expected).std()

    assert error < 0.003 * expected.std()


@torch.no_grad()
def test_codes_keep_their_picture(grown, movqgan):
    codes = torch.randint(256, (2, 12, 12), generator=torch.Generator().manual_seed(3))
    expected = movqgan.decode(codes)
    error = grown.decode_images(codes) - expected

    assert error.std() < 0.03 * expected.std()


def test_another_file_is_refused(tmp_path):
    (tmp_path / "a.ckpt").write_bytes(b"not a checkpoint")
    torch.save({"weight": torch.zeros(3)}, tmp_path / "b.ckpt")

    with pytest.raises(InputError, match=r"a\.ckpt: damaged, or not a checkpoint of MoVQGAN"):
        import_folder(tmp_path / "a.ckpt", tmp_path / "out")
    with pytest.raises(InputError, match=r"b\.ckpt: no MoVQGAN: lacks encoder\.conv_in\.weight"):
        import_folder(tmp_path / "b.ckpt", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_movqgan_of_other_shapes_is_refused(file, tmp_path):
    weights = torch.load(file)
    spoiled = {
        "quant_conv.weight": torch.zeros(4, 4, 3, 3),
        "decoder.mid.block_1.conv1.weight": torch.zeros(2),
        "quantize.embedding.weight": torch.zeros(256, 5),
    }
    for name, tensor in spoiled.items():
        torch.save({**weights, name: tensor}, tmp_path / "bad.ckpt")
        with pytest.raises(InputError, match=r"bad\.ckpt: .* is missing or of another shape"):
            import_folder(tmp_path / "bad.ckpt", tmp_path / "out")
    torch.save({**weights, "encoder.conv_in.weight": torch.zeros(30, 3, 3, 3)}, tmp_path / "b.ckpt")
    with pytest.raises(InputError, match=r"b\.ckpt: no MoVQGAN: base_channels: "):
        import_folder(tmp_path / "b.ckpt", tmp_path / "out")
    assert not (tmp_path / "out").exists()
