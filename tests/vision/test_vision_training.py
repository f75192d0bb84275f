"""Training the tokenizer, in miniature."""

import copy
import json
import logging

import numpy as np
import pytest
import torch
from PIL import Image

from emu3_megatron.config.tokenizer import TokenizerRecipe
from emu3_megatron.errors import InputError
from emu3_megatron.media.images import load_image, to_pixels
from emu3_megatron.media.writers import write_clip
from emu3_megatron.tokenizer_training.codebook import CodebookKeeper
from emu3_megatron.tokenizer_training.losses.terms import Reconstruction, psnr_db, weighted_loss
from emu3_megatron.tokenizer_training.samples import Samples
from emu3_megatron.tokenizer_training.trainer import train_tokenizer
from emu3_megatron.vision.quantizer import VectorQuantizer
from emu3_megatron.vision.tokenizer import VisionTokenizer

COLOURS = [(220, 30, 30), (30, 200, 40), (40, 40, 220), (230, 220, 60), (240, 240, 240), (8, 8, 8)]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Six pictures of two colours each."""
    folder = tmp_path_factory.mktemp("photos")
    for i, colour in enumerate(COLOURS):
        values = np.full((32, 32, 3), colour, np.uint8)
        values[:, 16:] = COLOURS[i - 1]
        Image.fromarray(values).save(folder / f"{i}.png")
    return folder


def recipe(photos, **changes) -> TokenizerRecipe:
    values = {
        "network": {"preset": "tiny", "codebook_size": 32, "channel_multiplier": (1, 1, 1, 1)},
        "data": {"images": photos, "area": 32 * 32, "crop": None},
        "steps": 8,
        "batch_size": 2,
        "lr": 2e-3,
        "plain_steps": 3,
        "batch_norm_steps": 4,
        "revive_every": 2,
        "log_every": 2,
    }
    return TokenizerRecipe.model_validate(values | changes)


@pytest.fixture(scope="module")
def trained(photos, tmp_path_factory):
    run = tmp_path_factory.mktemp("run")
    return train_tokenizer(recipe(photos, steps=60, plain_steps=30, batch_norm_steps=30), run), run


def reconstruction_psnr(tokenizer, photos) -> float:
    pixels = torch.stack([to_pixels(load_image(path)) for path in sorted(photos.iterdir())])
    with torch.no_grad():
        latents = tokenizer.image_latents(pixels)
        vectors = tokenizer.quantize.lookup(tokenizer.quantize.nearest(latents))
        rebuilt = tokenizer.decode_vectors(vectors, frames=1)[:, 0]
    return psnr_db(Reconstruction(pixels, rebuilt, latents, vectors)).item()


def test_pictures_come_back(trained, photos):
    tokenizer, _ = trained
    fresh = VisionTokenizer(tokenizer.network).eval()
    assert reconstruction_psnr(tokenizer, photos) > reconstruction_psnr(fresh, photos) + 4


def test_eval_mode_is_as_good_as_train_mode(trained, photos):
    tokenizer, _ = trained
    in_eval_mode = reconstruction_psnr(tokenizer, photos)
    tokenizer = copy.deepcopy(tokenizer).train()
    for module in tokenizer.modules():
        if isinstance(module, torch.nn.BatchNorm3d):
            module.momentum = 0  # look, and leave the statistics as they are
    in_train_mode = reconstruction_psnr(tokenizer, photos)
    assert in_eval_mode > in_train_mode - 0.1


def test_metrics_and_tokenizer_are_written(trained):
    tokenizer, run = trained
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(2, 61, 2))
    wanted = {"loss", "l2", "commitment", "psnr_db", "codebook_usage", "images_per_second"}
    assert wanted < lines[-1].keys()
    assert lines[-1]["loss"] < lines[0]["loss"] / 2
    written = VisionTokenizer.load(run / "tokenizer").state_dict()
    assert all(torch.equal(written[name], t) for name, t in tokenizer.state_dict().items())


def test_same_seed_same_weights(photos, tmp_path):
    first, again = (train_tokenizer(recipe(photos), tmp_path).state_dict() for _ in range(2))
    other = train_tokenizer(recipe(photos, seed=1), tmp_path).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["encoder.conv_in.weight"], other["encoder.conv_in.weight"])


def test_training_goes_on_from_a_tokenizer(trained, photos, tmp_path):
    tokenizer, run = trained
    longer = recipe(photos, start_from=run / "tokenizer", steps=1, batch_norm_steps=0, lr=1e-5)
    reached = reconstruction_psnr(train_tokenizer(longer, tmp_path), photos)
    assert reached == pytest.approx(reconstruction_psnr(tokenizer, photos), abs=0.5)


@pytest.mark.parametrize("clip_fps", [8, 12])
def test_clips_are_trained_on_to_their_last_frame(photos, tmp_path, clip_fps):
    write_clip(tmp_path / "clips" / "clip.mp4", torch.rand(8, 3, 32, 32), fps=8)
    data = {"images": photos, "clips": tmp_path / "clips", "area": 1024, "crop": 16}
    data |= {"clip_share": 0.5, "clip_frames": 4, "clip_fps": clip_fps}
    samples = Samples(recipe(photos, data=data).data, seed=0, length=20)
    shapes = {tuple(samples[i].shape) for i in range(len(samples))}
    assert shapes == {(3, 16, 16), (4, 3, 16, 16)}
    train_tokenizer(recipe(photos, data=data), tmp_path / "run")


def test_unusable_files_are_named_and_skipped(photos, tmp_path, caplog):
    for path in photos.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    Image.new("RGB", (8, 80)).save(tmp_path / "narrow.png")
    with caplog.at_level(logging.WARNING):
        train_tokenizer(recipe(tmp_path, data={"images": tmp_path, "area": 1024}), tmp_path)
    assert sorted(record.args[0].split(":")[0] for record in caplog.records) == [
        str(tmp_path / "broken.png"),
        str(tmp_path / "narrow.png"),
    ]
    last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["skipped_files"] == 2


def test_nothing_usable(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    with pytest.raises(InputError, match="not one of its files"):
        train_tokenizer(recipe(tmp_path), tmp_path / "run")


def test_no_photos(tmp_path):
    with pytest.raises(InputError, match="no file ends in"):
        train_tokenizer(recipe(tmp_path), tmp_path / "run")


def test_codebook_is_placed_where_the_latents_are():
    quantizer = VectorQuantizer(4, 2)
    corners = torch.tensor([[5.0, 5], [5, -5], [-5, 5], [-5, -5]])
    latents = (corners.repeat(64, 1) + 0.1 * torch.randn(256, 2)).T[None, :, :, None, None]
    keeper = CodebookKeeper(quantizer, seed=0)
    keeper.observe(latents, quantizer.nearest(latents))
    keeper.fit()
    keeper.end_round(revive=True)
    for _ in range(20):  # a corner that got no code gets one in the end
        keeper.observe(latents, quantizer.nearest(latents))
        keeper.end_round(revive=True)
    error = (quantizer.lookup(quantizer.nearest(latents)) - latents).square().mean()
    assert error < 30


def test_loss_is_the_weighted_sum_of_its_terms():
    one = torch.ones(1, 1)
    result = Reconstruction(pixels=one, rebuilt=3 * one, latents=one, vectors=0 * one)
    loss, terms = weighted_loss(result, {"l2": 1, "l1": 0, "codebook": 0.25, "commitment": 1})
    assert loss.item() == 4 + 0.25 + 1
    assert terms.keys() == {"l2", "codebook", "commitment"}


def test_psnr_of_a_tenth_of_the_range():
    result = Reconstruction(torch.zeros(1), torch.full((1,), 0.2), torch.zeros(1), torch.zeros(1))
    assert psnr_db(result).item() == pytest.approx(20)
