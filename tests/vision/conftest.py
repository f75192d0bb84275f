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
            elif tensor.ndim == 1:
                tensor.normal_(0, 0.1, generator=generator)
            elif tensor.is_floating_point():
                gain = 1 if name.startswith("decoder") else 1.5
                tensor.normal_(0, gain * tensor[0].numel() ** -0.5, generator=generator)
        # codes among the latents, so that the nearest one is rarely the same
        with torch.no_grad():
            clips = tokenizer.clip_latents(noise(2, 12, 3, 64, 64))
            images = tokenizer.image_latents(noise(2, 3, 64, 64))
        latents_nc = torch.cat((clips, images), dim=2).movedim(1, -1).flatten(0, -2)
        codes_kc = tokenizer.quantize.embedding.weight.data
        chosen = torch.randperm(len(latents_nc), generator=generator)[: len(codes_kc)]
        codes_kc.copy_(latents_nc[chosen])
        return tokenizer

    return run
