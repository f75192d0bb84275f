import pytest
import torch

from emu3_megatron.vision.tokenizer import VisionTokenizer


def noise(*shape: int) -> torch.Tensor:
    """Pixels in [-1, 1]: coarse colours with fine noise on them."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(torch.Size(shape[:-3]).numel(), 3, 5, 5, generator=generator) * 2 - 1
    smooth = torch.nn.functional.interpolate(coarse, size=shape[-2:], mode="bilinear")
    return (smooth.view(shape) + 0.2 * torch.randn(shape, generator=generator)).clamp(-1, 1)


@pytest.fixture(scope="session", name="noise")
def noise_fixture():
    return noise


@pytest.fixture(scope="session")
def randomise():
    """Random weights, statistics and codes, of such a scale that many codes are in use."""

    def run(tokenizer: VisionTokenizer) -> VisionTokenizer:
        generator = torch.Generator().manual_seed(0)
        for name, tensor in tokenizer.eval().state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2, generator=generator)
            elif name.endswith("running_mean") or ("norm" in name and tensor.ndim == 1):
                tensor.normal_(0.5, 0.5, generator=generator)
            elif tensor.is_floating_point():
                tensor.normal_(0, max(1, tensor[0].numel()) ** -0.5, generator=generator)
        # codes where the latents are, so that the nearest one is rarely the same
        latents_bcn = tokenizer.clip_latents(noise(2, 8, 3, 64, 64)).detach().flatten(2)
        spread, centre = latents_bcn.std((0, 2)), latents_bcn.mean((0, 2))
        codes_kc = tokenizer.quantize.embedding.weight.data
        codes_kc.normal_(generator=generator).mul_(spread).add_(centre)
        return tokenizer

    return run
