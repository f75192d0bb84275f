"""Runs of the tokenizer: what they leave, what they go on from, what they refuse."""

import json
import shutil

import pytest
import torch
from PIL import Image
from support.processes import run_processes
from support.running import emu3
from support.tokenizers import make_clips, make_photos, start_tokenizer, tokenizer_recipe

from emu3_megatron.config.describe import describe
from emu3_megatron.config.tokenizer_training import TokenizerValidationConfig
from emu3_megatron.errors import InputError
from emu3_megatron.media.files import find_files
from emu3_megatron.runs.events import read_events
from emu3_megatron.runs.interfaces import Verdict
from emu3_megatron.runs.status import status
from emu3_megatron.tokenizer_training.forward import psnr_db
from emu3_megatron.tokenizer_training.held_out import HeldOutFiles
from emu3_megatron.tokenizer_training.hooks import ShowReconstructions
from emu3_megatron.tokenizer_training.losses.terms import Reconstruction
from emu3_megatron.tokenizer_training.samples import Samples
from emu3_megatron.tokenizer_training.stage import train_tokenizer
from emu3_megatron.vision.files import At, read_pixels
from emu3_megatron.vision.measures.reconstruction import codec_of, means, measure
from emu3_megatron.vision.tokenizer import VisionTokenizer


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return make_photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def held_out(tmp_path_factory):
    return make_photos(tmp_path_factory.mktemp("held-out"), mirrored=True)


@pytest.fixture(scope="module")
def trained(photos, held_out, tmp_path_factory):
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("run")
    recipe = tokenizer_recipe(
        folder,
        photos,
        run={"steps": 60},
        codebook={"plain_steps": 30},
        batch_norm_steps=30,
        ema={"decay": 0.9},
        validation={"every": 20, "images": held_out, "area": 1024, "shown": 2},
    )
    train(recipe)
    return folder


def train(recipe, accept=False):
    run_processes(train_tokenizer, 1, recipe, accept)


def rows(folder):
    return [
        json.loads(line)
        for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ]


def psnr(tokenizer, photos):
    kept = measure(codec_of(tokenizer), find_files(photos, [".png"]), At(1024)).kept
    return means(kept)["PSNR"]


def refused(recipe):
    with pytest.raises(AssertionError) as failure:
        train(recipe)
    return str(failure.value)


def test_pictures_come_back(trained, photos):
    tokenizer = VisionTokenizer.load(trained / "tokenizer")
    assert psnr(tokenizer, photos) > psnr(VisionTokenizer(tokenizer.network).eval(), photos) + 3.5


def test_a_run_leaves_metrics_a_checkpoint_and_pictures(trained):
    steps = [row for row in rows(trained) if "loss" in row]
    assert [row["step"] for row in steps] == list(range(2, 61, 2))
    wanted = {"l2", "commitment", "codebook_usage", "codebook_perplexity", "samples_per_second"}
    assert wanted < steps[-1].keys()
    assert steps[-1]["l2"] < 0.7 * steps[0]["l2"]
    assert (trained / "checkpoints" / "latest").read_text(encoding="utf-8") == "step-00000060\n"
    assert {path.suffix for path in (trained / "samples" / "step-00000060").iterdir()} == {".png"}


def test_without_codes_psnr_has_another_name(trained):
    """What the decoder makes of latents says nothing of what it will make of codes."""
    names = {row["step"]: row.keys() for row in rows(trained) if "loss" in row}
    assert "psnr_without_codes_db" in names[30]
    assert "psnr_db" not in names[30]
    assert "psnr_db" in names[32]


def test_status_says_what_is_minimised(trained):
    lines = status(trained)
    assert "step: 60 of 60" in lines[1]
    assert "loss terms: l2, codebook, commitment" in lines


def test_it_is_no_decoder(trained, tmp_path):
    command = ("generate", "image", trained, "a cat", "--tokenizer", trained / "tokenizer")
    ended = emu3(*command, "--out", tmp_path / "x.png", cwd=tmp_path)
    assert ended.code == 2
    assert "a checkpoint of the vision tokenizer's training; name one of a decoder" in ended.said
    assert (
        "the training of a vision tokenizer of 32 codes"
        in emu3("check", trained, cwd=tmp_path).said
    )


def test_validation_measures_what_is_saved(trained, held_out):
    """The running mean of the weights, through the codes; nothing before there are any."""
    found = [row for row in rows(trained) if "validation/images/psnr_db" in row]
    assert [row["step"] for row in found] == [40, 60]
    saved = psnr(VisionTokenizer.load(trained / "tokenizer"), held_out)
    assert found[-1]["validation/images/psnr_db"] == pytest.approx(saved, abs=1e-6)


def test_a_second_run_in_a_finished_folder_changes_nothing(trained, photos, tmp_path):
    before = (trained / "tokenizer" / "model.safetensors").read_bytes()
    path = tmp_path / "recipe.yaml"
    path.write_text(describe(finished_recipe(trained, photos)), encoding="utf-8")

    again = emu3("tokenizer", "train", path, cwd=tmp_path)

    assert again.code == 0
    assert f"{trained}: step 60 of 60 is done; raise run.steps to go on" in again.said
    assert (trained / "tokenizer" / "model.safetensors").read_bytes() == before


def test_a_longer_run_says_that_its_rate_has_ended(trained, photos, tmp_path):
    path = tmp_path / "recipe.yaml"
    longer = {"steps": 61, "stop_after": 60}
    path.write_text(describe(finished_recipe(trained, photos, run=longer)), encoding="utf-8")

    said = emu3("tokenizer", "train", path, cwd=tmp_path).said

    assert "run.steps=61: steps after optimizer.schedule.steps=60 are taken" in said


def finished_recipe(trained, photos, **changes):
    values = {
        "run": {"steps": 60},
        "codebook": {"plain_steps": 30},
        "batch_norm_steps": 30,
        "ema": {"decay": 0.9},
    }
    return tokenizer_recipe(trained, photos, **{**values, **changes})


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"network": {"codebook_size": 64}}, "network.codebook_size: 32 → 64"),
        ({"loss": {"l1": 1}}, "loss.l1: 0.0 → 1.0"),
        ({"adversarial": {"start": 2, "warmup": 2, "layers": 1, "channels": 8}}, "adversarial: "),
        ({"ema": None}, "ema: "),
    ],
    ids=["book size", "loss set", "discriminator", "EMA"],
)
def test_a_resume_cannot_change_what_the_state_belongs_to(trained, photos, changes, named):
    message = refused(finished_recipe(trained, photos, run={"steps": 62}, **changes))
    assert f"cannot change within a run: {named}" in message


def test_other_files_are_other_data(trained, photos, tmp_path):
    more = make_photos(tmp_path / "photos")
    shutil.copy(more / "0.png", more / "another.png")
    message = refused(finished_recipe(trained, more, run={"steps": 62}))
    assert "the recipe changed since the checkpoint: data.content" in message


def test_moved_files_are_the_same_data(trained, photos, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    moved = finished_recipe(tmp_path / "run", make_photos(tmp_path / "photos"), run={"steps": 61})
    train(moved, True)  # the schedule is longer now
    assert rows(tmp_path / "run")[-1]["step"] == 61


def test_it_starts_from_another_runs_weights(trained, photos, tmp_path):
    recipe = tokenizer_recipe(
        tmp_path,
        photos,
        run={"steps": 1, "init_from": trained},
        optimizer={"lr": 1e-6},
        batch_norm_steps=0,
    )
    train(recipe)
    start = VisionTokenizer.load(trained / "tokenizer")
    assert psnr(VisionTokenizer.load(tmp_path / "tokenizer"), photos) == pytest.approx(
        psnr(start, photos), abs=0.2
    )
    assert "psnr_db" in rows(tmp_path)[-1]  # it came with codes


def test_the_decoder_alone_leaves_every_code(trained, photos, tmp_path):
    recipe = tokenizer_recipe(
        tmp_path,
        photos,
        run={"steps": 6, "init_from": trained},
        trained="decoder",
        adversarial={"start": 1, "warmup": 1, "layers": 1, "channels": 8},
    )
    train(recipe)

    before, after = (VisionTokenizer.load(run / "tokenizer") for run in (trained, tmp_path))
    pixels = torch.stack([read_pixels(path, At(1024)) for path in find_files(photos, [".png"])])
    assert torch.equal(before.encode_images(pixels), after.encode_images(pixels))
    clip = torch.rand(1, 8, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert torch.equal(before.encode_clips(clip), after.encode_clips(clip))
    assert not torch.equal(before.decoder.conv_out.weight, after.decoder.conv_out.weight)


def test_another_network_to_start_from_is_refused(trained, photos, tmp_path):
    recipe = tokenizer_recipe(
        tmp_path, photos, run={"init_from": trained}, network={"num_res_blocks": 2}
    )
    assert f"run.init_from={trained}: another network than the recipe's" in refused(recipe)


def test_codes_that_no_step_used_are_said_and_measured(photos, tmp_path):
    recipe = tokenizer_recipe(tmp_path, photos, codebook={"plain_steps": 8})
    path = tmp_path / "recipe.yaml"
    path.write_text(describe(recipe), encoding="utf-8")

    said = emu3("tokenizer", "train", path, cwd=tmp_path).said

    (line,) = [line for line in said.splitlines() if "no step of 8 used its codes" in line]
    gives = psnr(VisionTokenizer.load(tmp_path / "tokenizer"), photos)
    assert f"give {gives:.1f} dB on 6 of its photos" in line
    assert [event["event"] for event in read_events(tmp_path)].count("codes never used") == 1


def test_a_run_that_ended_before_it_wrote_its_tokenizer_writes_it_at_the_next_start(
    trained, photos, tmp_path
):
    shutil.copytree(trained, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "tokenizer")
    train(finished_recipe(tmp_path / "run", photos))
    written, before = (
        run / "tokenizer" / "model.safetensors" for run in (tmp_path / "run", trained)
    )
    assert written.read_bytes() == before.read_bytes()


def test_a_resume_does_not_need_what_the_run_started_from(trained, photos, tmp_path):
    shutil.copytree(trained / "tokenizer", tmp_path / "given")
    changes = {
        "trained": "decoder",
        "run": {"steps": 3, "init_from": tmp_path / "given", "stop_after": 2},
    }
    train(tokenizer_recipe(tmp_path / "run", photos, **changes))
    shutil.rmtree(tmp_path / "given")
    changes["run"]["stop_after"] = None
    train(tokenizer_recipe(tmp_path / "run", photos, **changes))

    before, after = (VisionTokenizer.load(run / "tokenizer") for run in (trained, tmp_path / "run"))
    assert torch.equal(before.encoder.conv_in.weight, after.encoder.conv_in.weight)
    assert not torch.equal(before.decoder.conv_out.weight, after.decoder.conv_out.weight)


def test_bug_12_the_running_mean_begins_at_the_given_weights(trained, photos, tmp_path, mesh):
    recipe = tokenizer_recipe(tmp_path, photos, run={"init_from": trained}, ema={"decay": 0.999})
    evaluated = start_tokenizer(recipe, mesh).trainer.evaluated.state_dict()
    given = VisionTokenizer.load(trained / "tokenizer").state_dict()
    assert [name for name in given if not torch.equal(given[name], evaluated[name])] == []


def test_a_white_picture_that_comes_back_white_counts_100_db():
    white = torch.ones(1, 3, 16, 16)
    assert psnr_db(Reconstruction(white, white * 1.01, white, white)).tolist() == [100]


def test_unusable_files_are_named_and_counted(tmp_path, photos):
    shutil.copytree(photos, tmp_path / "photos")
    (tmp_path / "photos" / "broken.png").write_bytes(b"not a picture")
    Image.new("RGB", (8, 80)).save(tmp_path / "photos" / "narrow.png")
    train(tokenizer_recipe(tmp_path / "run", tmp_path / "photos", data={"workers": 1}))

    told = [e["details"] for e in read_events(tmp_path / "run") if e["event"] == "unusable file"]
    assert len(told) == 2  # each once
    assert any("broken.png: " in line for line in told)
    assert any("narrow.png: " in line for line in told)
    counted = [row["unusable_samples"] for row in rows(tmp_path / "run") if "loss" in row]
    assert sum(counted) >= 1


def test_photos_too_narrow_for_the_loss_are_left_out(tmp_path):
    photos = make_photos(tmp_path / "photos", sizes=[(160, 32), (64, 64)])
    data = tokenizer_recipe(tmp_path, photos).data
    samples = Samples(data, seed=0, least_side=32)  # what LPIPS needs
    found = [samples.read(index) for index in range(6)]
    faults = [sample.fault for sample in found if sample.pixels is None]
    assert len(faults) == 3  # 72x16 pixels
    assert all("a side of under 32 pixels at data.area=1024" in fault for fault in faults)


def test_pixels_that_are_no_numbers_are_named(tmp_path, photos, mesh, monkeypatch):
    nothing = torch.full((3, 32, 32), torch.nan)
    monkeypatch.setattr("emu3_megatron.tokenizer_training.samples.to_pixels", lambda _: nothing)
    recipe = tokenizer_recipe(tmp_path, make_photos(tmp_path / "photos"))
    told = []
    steps = start_tokenizer(recipe, mesh, report=lambda step, faults: told.extend(faults))
    with pytest.raises(InputError, match="not one of its files could be used"):
        steps.take(0, 6)
    assert "holds pixels that are not finite" in told[0]


def test_training_files_are_not_held_out(photos, tmp_path):
    shutil.copy(photos / "3.png", tmp_path / "other.png")
    recipe = tokenizer_recipe(tmp_path / "run", photos, validation={"every": 2, "images": tmp_path})
    message = refused(recipe)
    assert f"{tmp_path / 'other.png'}: has the content of the training file" in message


def test_a_run_folder_that_is_a_file_is_refused(photos, tmp_path):
    (tmp_path / "run").write_text("", encoding="utf-8")
    assert "is a file; name a folder" in refused(tokenizer_recipe(tmp_path / "run", photos))


def test_nothing_usable_is_refused(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    message = refused(tokenizer_recipe(tmp_path / "run", tmp_path))
    assert f"{tmp_path}: not one of its files could be used" in message


def test_a_run_goes_on_with_the_one_photo_that_can_be_used(tmp_path, mesh):
    """However far apart two epochs put it."""
    photos = make_photos(tmp_path / "photos")
    for name in "12345":
        (photos / f"{name}.png").write_bytes(b"not a picture")
    recipe = tokenizer_recipe(tmp_path, photos, batch={"size": 1}, run={"seed": 2})
    results = start_tokenizer(recipe, mesh).take(0, 24)
    assert sum(result.metrics["samples"] for result in results) == 4


def test_a_bad_step_moves_neither_network(photos, tmp_path, mesh):
    recipe = tokenizer_recipe(
        tmp_path,
        photos,
        adversarial={"start": 1, "warmup": 0, "layers": 1, "channels": 8, "lecam": 0.1},
        ema={"decay": 0.5},
    )
    steps = start_tokenizer(recipe, mesh)
    steps.take(0, 2)
    before = steps.tensors()
    (samples,) = steps.data.batches(steps, 2, 3)

    result = steps.trainer.step(3, samples, lambda values: Verdict("spike"))

    after = steps.tensors()
    assert [name for name in before if not torch.equal(before[name], after[name])] == []
    assert result.details == [{"samples": [4, 5]}]
    steps.take(3, 4)
    moved = {n for n, t in steps.tensors().items() if not torch.equal(t, before[n])}
    assert {name.partition(".")[0] for name in moved} >= {"tokenizer", "discriminators", "lecam"}


def test_the_guard_judges_both_networks(photos, tmp_path, mesh):
    recipe = tokenizer_recipe(
        tmp_path, photos, adversarial={"start": 1, "warmup": 0, "layers": 1, "channels": 8}
    )
    steps, judged = start_tokenizer(recipe, mesh), []
    (samples,) = steps.data.batches(steps, 0, 1)
    steps.trainer.step(1, samples, lambda values: judged.append(values) or Verdict())
    names = {"loss", "discriminator_loss", "grad_norm", "grad_norm_frames"}
    assert {name.partition(" ")[0] for name in judged[0]} == names


def test_the_guard_compares_steps_with_codes_with_their_own_kind(photos, tmp_path, mesh):
    """The loss jumps when codes begin; that is no spike."""
    steps, judged = start_tokenizer(tokenizer_recipe(tmp_path, photos), mesh), []
    for number, samples in enumerate(steps.data.batches(steps, 0, 5), start=1):
        steps.trainer.step(number, samples, lambda values: judged.append(values) or Verdict())
    names = [sorted(values) for values in judged]
    assert names[:3] == [["grad_norm without codes", "loss without codes"]] * 3
    assert names[3:] == [["grad_norm", "loss"]] * 2


def test_held_out_files_that_come_back_as_nan_are_refused_by_name(photos, tmp_path, mesh):
    tokenizer = start_tokenizer(tokenizer_recipe(tmp_path, photos), mesh).trainer.evaluated
    tokenizer.decoder.conv_out.bias.data.fill_(torch.nan)
    section = TokenizerValidationConfig(every=1, images=photos, area=1024)
    with pytest.raises(InputError, match=r"0\.png: NaN in .* no file of validation can be used"):
        HeldOutFiles(section, lambda: tokenizer, mesh).measure(lambda: True)


def test_files_of_one_name_are_all_drawn(photos, tmp_path, mesh):
    for name in "abc":
        shutil.copytree(photos, tmp_path / "held-out" / name)
    tokenizer = start_tokenizer(tokenizer_recipe(tmp_path, photos), mesh).trainer.evaluated
    section = TokenizerValidationConfig(every=1, images=tmp_path / "held-out", area=1024, shown=18)
    held_out = HeldOutFiles(section, lambda: tokenizer, mesh)
    drawn = ShowReconstructions(held_out).draw(tmp_path / "drawn")
    assert len(drawn) == len(list((tmp_path / "drawn").iterdir())) == 18


def test_a_file_that_cannot_be_read_takes_no_place_among_the_drawn(photos, tmp_path, mesh):
    held_out = tmp_path / "held-out"
    shutil.copytree(photos, held_out)
    (held_out / "0.png").write_bytes(b"no picture")
    tokenizer = start_tokenizer(tokenizer_recipe(tmp_path, photos), mesh).trainer.evaluated
    section = TokenizerValidationConfig(every=1, images=held_out, area=1024, shown=2)
    drawn = HeldOutFiles(section, lambda: tokenizer, mesh).shown()
    assert [path.name for path, *_ in drawn] == ["1.png", "2.png"]


def test_clips_are_trained_on_to_their_last_frame(photos, tmp_path, mesh):
    for fps in (8, 12):
        recipe = tokenizer_recipe(
            tmp_path,
            photos,
            data={
                "clips": make_clips(tmp_path / "clips"),
                "clip_fps": fps,
                "clip_frames": 4,
                "clip_share": 0.5,
                "crop": 16,
            },
        )
        samples = start_tokenizer(recipe, mesh).data.samples
        shapes = {tuple(samples.read(i).pixels.shape) for i in range(20)}
        assert shapes == {(3, 16, 16), (4, 3, 16, 16)}


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"data": {"clip_share": 0.5}}, "clip_share=0.5 without clips"),
        ({"data": {"clip_frames": 2}}, "clip_frames"),
        ({"data": {"crop": 20}}, "crop"),
        (
            {"adversarial": {"start": 6, "warmup": 4, "layers": 1}},
            "felt from step 10 on .* after the last, 8",
        ),
        ({"adversarial": {"layers": 3, "warmup": 0}}, "32 pixels are under the 70"),
        # Neither a crop beyond the picture nor the mean size hides how small samples are.
        (
            {"data": {"crop": 256}, "adversarial": {"layers": 3, "warmup": 0}},
            "data.area: 32 pixels are under the 70",
        ),
        (
            {"data": {"zoom": 4}, "adversarial": {"layers": 2, "warmup": 0}},
            "data.area / data.zoom: 16 pixels are under the 34",
        ),
        ({"loss": {"l2": 0}}, "no term compares pixels"),
        ({"trained": "new_codes", "run": {"init_from": "x"}}, "needs data.clips and"),
        (
            {
                "trained": "new_codes",
                "run": {"init_from": "x"},
                "data": {"clips": "x"},
                "codebook": {"plain_steps": 0},
            },
            "needs codebook.plain_steps above 0",
        ),
        ({"codebook": {"count_steps": 5}}, "count_steps"),
        ({"trained": "decoder"}, "needs run.init_from"),
        ({"loss": {"perceptual": {"kind": "lpips"}}}, "kind=lpips needs weights"),
    ],
)
def test_refused_before_anything_is_read(photos, tmp_path, changes, line):
    with pytest.raises(ValueError, match=line):
        tokenizer_recipe(tmp_path, photos, **changes)
