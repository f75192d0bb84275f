"""Baselines that need no training: what each keeps of a patch, and k-means."""

import pytest
import torch
from PIL import Image

from emu3_megatron.media.writers import write_clip, write_png
from emu3_megatron.vision.files import At, read_pixels
from emu3_megatron.vision.measures.baselines import fit_baselines, k_means, mean_colour
from emu3_megatron.vision.measures.reconstruction import means, measure

AT = At(32 * 32)
NAMES = ["4 principal components", "8 principal components"]
QUANTISED = ["4 components, k-means", "patches, k-means"]


@pytest.fixture
def files(tmp_path, noise):
    clip = noise(8, 3, 32, 32)
    write_clip(tmp_path / "clip.mp4", clip, 12.0)
    for number, frame in enumerate(clip[:3]):
        image = frame.add(1).mul(127.5).byte().permute(1, 2, 0).numpy()
        write_png(tmp_path / f"{number}.png", Image.fromarray(image))
    return sorted(tmp_path.iterdir())


def test_the_mean_colour_is_that_of_the_pixels_of_each_code(noise):
    images, clips = noise(2, 3, 16, 24), noise(2, 8, 3, 16, 24)
    rebuild = mean_colour().codec().rebuild

    blocks = torch.nn.functional.avg_pool2d(images, 8)
    torch.testing.assert_close(
        rebuild(images)[0], blocks.repeat_interleave(8, 2).repeat_interleave(8, 3)
    )
    blocks = torch.nn.functional.avg_pool3d(clips.transpose(1, 2), (4, 8, 8))
    expected = torch.nn.functional.interpolate(blocks, size=(8, 16, 24)).transpose(1, 2)
    torch.testing.assert_close(rebuild(clips)[0], expected)


def test_components_are_those_of_the_singular_value_decomposition(files):
    """On what they were fitted to nothing of their rank is nearer."""
    images = files[:3]
    pixels = torch.stack([read_pixels(path, AT) for path in images])
    patches = torch.nn.functional.unfold(pixels, 8, stride=8).transpose(1, 2).flatten(0, 1)
    centred = patches - patches.mean(0)
    left = centred.double().svd().S[4:].square().sum() / patches.numel()

    four = fit_baselines(images, AT, 8, 0)[0]

    rebuilt, _ = four.codec().rebuild(pixels)
    assert (rebuilt - pixels).square().mean().item() == pytest.approx(left.item(), rel=1e-3)


def test_baselines_of_images_and_clips_stand_in_their_order(files):
    fitted = fit_baselines(files, AT, 8, 0)

    assert [baseline.name for baseline in fitted] == NAMES + QUANTISED
    psnr = {b.name: means(measure(b.codec(), files, AT).kept)["PSNR"] for b in fitted}
    assert psnr[NAMES[1]] > psnr[NAMES[0]] > psnr[QUANTISED[0]]


def test_a_seed_fits_the_same_again(files):
    one, other = (fit_baselines(files, AT, 8, 3)[-1].codec() for _ in range(2))

    pixels = read_pixels(files[0], AT)[None]
    assert torch.equal(one.rebuild(pixels)[0], other.rebuild(pixels)[0])


def test_k_means_finds_clusters():
    draw = torch.Generator().manual_seed(0)
    centres = torch.tensor([[0.0, 0], [10, 0], [0, 10], [10, 10]])
    rows = centres.repeat(50, 1) + torch.randn(200, 2, generator=draw)

    book = k_means(rows, 4, draw)

    assert torch.cdist(centres, book).min(1).values.max() < 1


def test_k_means_of_fewer_different_rows_than_codes_takes_each():
    rows = torch.tensor([[1.0], [2], [1], [2]])

    assert k_means(rows, 3, torch.Generator()).tolist() == [[1], [2]]
