"""Codes are placed where latents are, restarted, counted, and joined by new ones."""

import pytest
import torch
from support.tokenizers import make_clips, make_photos, start_tokenizer, tokenizer_recipe

from emu3_megatron.config.tokenizer_training import CodebookConfig
from emu3_megatron.runs.interfaces import Verdict
from emu3_megatron.tokenizer_training.codebook import CodebookKeeper, Seen
from emu3_megatron.tokenizer_training.kmeans import FAR_AWAY, fit, fit_beside
from emu3_megatron.tokenizer_training.samples import Sample
from emu3_megatron.vision.files import At, read_pixels
from emu3_megatron.vision.quantizer import VectorQuantizer
from emu3_megatron.vision.tokenizer import VisionTokenizer

CORNERS = torch.tensor([[5.0, 5], [5, -5], [-5, 5], [-5, -5]])


def keeper(codes=4, length=2, clip_share=0.5, **config):
    section = CodebookConfig.model_validate({"plain_steps": 1} | config)
    torch.manual_seed(0)
    return CodebookKeeper(VectorQuantizer(codes, length), section, 0, clip_share)


def seen(latents_nc, uses, is_clip=False):
    """A step of one sample."""
    uses = torch.tensor(uses)
    of_kind = torch.stack((uses * (not is_clip), uses * is_clip))
    return Seen(latents_nc[None], torch.tensor([len(latents_nc)]), torch.tensor([is_clip]), of_kind)


@pytest.fixture
def corners():
    return CORNERS.repeat(64, 1) + 0.1 * torch.randn(
        256, 2, generator=torch.Generator().manual_seed(1)
    )


def error_of(quantizer, latents_nc):
    book = quantizer.embedding.weight.detach()
    return torch.cdist(latents_nc, book).min(1).values.square().mean()


def test_kmeans_finds_the_means_of_what_is_near():
    points = torch.tensor([[0.0], [1.0], [10.0], [12.0]])
    means = fit(torch.tensor([[0.0], [10.0], [99.0]]), points, rounds=3)
    assert means.tolist() == [[0.5], [11.0], [99.0]]  # the last has no point and stays


def test_placed_and_restarted_every_corner_has_a_code(mesh, corners):
    found = keeper(window=64)
    found.observe(1, seen(corners, [0, 0, 0, 0]))
    found.place_codes(1)
    for step in range(2, 30):  # a corner that got no code gets one in the end
        book = found.quantizer.embedding.weight.detach()
        uses = torch.cdist(corners, book).argmin(1).bincount(minlength=4).tolist()
        found.observe(step, seen(corners, uses))
        found.restart(step)
    assert error_of(found.quantizer, corners) < 0.1


def test_codes_in_use_are_not_restarted(mesh, corners):
    found = keeper(window=64)
    found.observe(1, seen(corners, [3, 0, 1, 0]))
    before = found.quantizer.embedding.weight.detach().clone()

    moved = found.restart(1)

    after = found.quantizer.embedding.weight.detach()
    assert moved.tolist() == [1, 3]
    assert torch.equal(before[[0, 2]], after[[0, 2]])
    assert all((corners == code).all(1).any() for code in after[moved])  # onto latents


def test_clips_get_their_share_of_restarts_however_few_their_latents_are(mesh):
    found = keeper(codes=400, window=4, clip_share=0.25)
    found.observe(1, seen(torch.zeros(1000, 2), [0] * 400))
    found.observe(2, seen(torch.ones(200, 2), [0] * 400, is_clip=True))

    found.restart(2)

    of_clips = found.quantizer.embedding.weight[:, 0].sum().item()
    assert of_clips == pytest.approx(100, abs=35)  # not 400 x 200 / 1,200 = 67


def test_the_oldest_latents_leave_the_window(mesh):
    found = keeper(codes=2, window=3)
    for step, value in enumerate((1.0, 2.0, 3.0), start=1):
        found.observe(step, seen(torch.full((4, 2), value), [0, 0]))
    assert sorted(found.latents_wc[:, 0].tolist()) == [2, 2, 3, 3, 3, 3]


def test_more_latents_than_the_window_has_places_are_the_last_ones(mesh):
    found = keeper(codes=2, window=3)
    found.observe(1, seen(torch.arange(20.0).view(10, 2), [0, 0]))
    assert sorted(found.latents_wc[:, 0].tolist()) == [8, 10, 12, 14, 16, 18]
    assert (found.filled, found.place) == (6, 0)  # each place was written once


def test_bug_22_empty_places_of_the_window_count_as_nothing(mesh):
    """Neither as a use of code 0, nor as a latent of zeros that codes are moved to."""
    found = keeper(window=64)
    assert found.usage() == {"codebook_usage": 0.0, "codebook_perplexity": 0.0}
    found.observe(1, seen(CORNERS[:1], [0, 0, 0, 1]))
    found.restart(1)
    assert found.quantizer.embedding.weight[:3].tolist() == [[5, 5]] * 3


def test_codes_placed_anew_do_not_inherit_the_counts_of_the_old(mesh, corners):
    found = keeper(window=64)
    found.observe(1, seen(corners, [7, 7, 7, 7]))
    found.place_codes(1)
    found.observe(2, seen(corners, [7, 0, 0, 0]))
    assert found.usage()["codebook_usage"] == 0.25


def test_usage_is_of_the_last_steps_alone(mesh):
    """Not since the last restart, nor since the run began."""
    found = keeper(count_steps=20)
    latents = torch.zeros(2, 2)
    found.observe(1, seen(latents, [1, 1, 1, 1]))
    assert found.usage() == {"codebook_usage": 1.0, "codebook_perplexity": pytest.approx(4)}
    for step in range(2, 20):
        found.observe(step, seen(latents, [3, 1, 0, 0]))
    assert found.usage()["codebook_usage"] == 1.0
    for step in range(20, 23):
        found.observe(step, seen(latents, [3, 1, 0, 0]))
    usage = found.usage()
    assert usage["codebook_usage"] == 0.5
    assert usage["codebook_perplexity"] == pytest.approx(4 / 3**0.75)  # e to the entropy of 3 : 1


def test_usage_is_told_by_kind_where_there_are_clips(mesh):
    found = keeper()
    found.observe(1, seen(torch.zeros(1, 2), [5, 5, 0, 0]))
    found.observe(2, seen(torch.zeros(1, 2), [0, 0, 0, 7], is_clip=True))
    usage = found.usage()
    assert usage["codebook_usage"] == 0.75
    assert (usage["codebook_usage_images"], usage["codebook_usage_clips"]) == (0.5, 0.25)


def test_a_restarted_code_has_no_past(mesh, tmp_path):
    """Neither moments of Adam nor an old running mean pull it back."""
    photos = make_photos(tmp_path / "photos")
    recipe = tokenizer_recipe(
        tmp_path / "run",
        photos,
        run={"steps": 20},
        codebook={"plain_steps": 0, "kmeans": False, "restart_after": 4},
        ema={"decay": 0.9},
    )
    steps = start_tokenizer(recipe, mesh)
    steps.take(0, 3)
    before = steps.trainer.tokenizer.quantize.embedding.weight.detach().clone()
    steps.take(3, 4)

    held = steps.tensors()
    book = held["tokenizer.quantize.embedding.weight"]
    moved = ((book - before).abs().max(1).values > 0.01).nonzero().flatten()  # Adam moves 0.002
    assert len(moved) > 10
    for moment in ("first", "second"):
        moments = held[f"moments.tokenizer.{moment}.quantize.embedding.weight"]
        assert moments[moved].abs().max() == 0
    assert torch.equal(held["ema.quantize.embedding.weight"][moved], book[moved])


# Growth


@pytest.fixture
def two_kinds():
    """Latents of images around the origin, and of clips around (4, 4), some among the images'."""
    draw = torch.Generator().manual_seed(0)
    images = torch.randn(2000, 2, generator=draw)
    clips = torch.cat(
        (4 + torch.randn(800, 2, generator=draw), torch.randn(200, 2, generator=draw))
    )
    return images, clips


def kept(latents, old, book):
    """The share of latents whose nearest code is the same in a larger book."""
    same = torch.cdist(latents, old).argmin(1) == torch.cdist(latents, book).argmin(1)
    return same.float().mean()


def test_new_codes_serve_clips_and_take_hardly_an_image(two_kinds):
    images, clips = two_kinds
    old = fit(images[:32].clone(), images, 10)
    new = fit_beside(old, 32, clips, images, 10, torch.Generator().manual_seed(0), margin=1)

    book = torch.cat((old, new))
    assert kept(images, old, book) >= 0.998
    error = lambda codes: torch.cdist(clips, codes).min(1).values.square().mean()
    assert error(book) < error(old) / 4
    assert len(torch.cdist(clips, book).argmin(1).unique()) > 32


def test_without_the_guard_they_would_take_many(two_kinds):
    images, clips = two_kinds
    old = fit(images[:32].clone(), images, 10)
    alike = clips[800:]  # those that lie where images do
    new = fit_beside(old, 32, alike, images[:0], 10, torch.Generator().manual_seed(0), margin=1)
    book = torch.cat((old, new))
    assert kept(images, old, book) < 0.9


def test_a_margin_keeps_codes_of_images_that_lie_further_from_them(two_kinds):
    images, _ = two_kinds
    clips = 2 * torch.randn(1000, 2, generator=torch.Generator().manual_seed(1))
    old = fit(images[:32].clone(), images, 10)
    nearest = old[torch.cdist(images, old).argmin(1)]
    unseen = nearest + 1.6 * (images - nearest)  # as pictures are that no step saw

    def share(margin):
        draw = torch.Generator().manual_seed(0)
        new = fit_beside(old, 32, clips, images, 10, draw, margin)
        return kept(unseen, old, torch.cat((old, new)))

    assert share(1) < 0.993 < 0.997 <= share(2)


def test_where_every_place_would_take_an_image_new_codes_stay_out_of_use():
    images = torch.tensor([[0.0, 0], [1.0, 0]])
    new = fit_beside(
        torch.tensor([[9.0, 9]]),
        3,
        images.clone(),
        images,
        2,
        torch.Generator().manual_seed(0),
        margin=1,
    )
    assert (new == FAR_AWAY).all()


def mirrored(photos):
    """Pictures that no step has seen, whose latents are like those of the photos."""
    return torch.stack([read_pixels(path, At(1024)).flip(-1) for path in sorted(photos.iterdir())])


def test_new_codes_wait_for_the_first_clip(mesh, tmp_path):
    photos, clips = make_photos(tmp_path / "photos"), make_clips(tmp_path / "clips")
    VisionTokenizer(tokenizer_recipe(tmp_path, photos).network).save(tmp_path / "tokenizer")
    recipe = tokenizer_recipe(
        tmp_path / "run",
        photos,
        run={"init_from": tmp_path},
        network={"codebook_size": 64},
        trained="new_codes",
        data={"clips": clips, "clip_frames": 4, "clip_fps": 8, "clip_share": 1e-9},
        codebook={"plain_steps": 1},
    )
    grown = start_tokenizer(recipe, mesh)
    grown.take(0, 2)
    assert not grown.trainer.used_codes(2)
    assert (grown.trainer.tokenizer.quantize.embedding.weight[32:] == FAR_AWAY).all()

    grown.trainer.step(
        3, [Sample(4, torch.zeros(4, 3, 32, 32)), Sample(5)], lambda values: Verdict()
    )

    assert grown.trainer.placed == 3
    assert not grown.trainer.used_codes(3)
    assert grown.trainer.used_codes(4)


def test_a_grown_tokenizer_keeps_its_image_codes(mesh, tmp_path):
    photos, clips = make_photos(tmp_path / "photos"), make_clips(tmp_path / "clips")
    first = start_tokenizer(
        tokenizer_recipe(tmp_path / "first", photos, run={"steps": 12}, ema={"decay": 0.5}), mesh
    )
    first.take(0, 12)
    first.trainer.evaluated.save(tmp_path / "first" / "tokenizer")
    recipe = tokenizer_recipe(
        tmp_path / "second",
        photos,
        run={"steps": 14, "init_from": tmp_path / "first"},
        network={"codebook_size": 64},
        trained="new_codes",
        data={"clips": clips, "clip_frames": 4, "clip_fps": 8, "clip_share": 0.5},
        codebook={"plain_steps": 8, "margin": 1},
    )
    grown = start_tokenizer(recipe, mesh)
    held_out = mirrored(photos)
    before = grown.trainer.tokenizer.encode_images(held_out)

    grown.take(0, 14)

    tokenizer = grown.trainer.tokenizer
    assert len(before.unique()) > 16
    # 96 tokens, and hardly any latents to guard: the figure for photos is in docs/tokenizer.md
    assert (tokenizer.encode_images(held_out) == before).float().mean() >= 0.95
    book = tokenizer.quantize.embedding.weight
    assert torch.equal(book[:32], first.trainer.evaluated.quantize.embedding.weight)
    assert (book[32:].abs() < 100).all(1).any()  # placed
    assert grown.results[-1].metrics["codebook_usage_clips"] > 0
    assert "psnr_db" in grown.results[0].metrics  # the old codes are in use all along
