"""Watermark and NSFW scores by a tiny classifier of random weights."""

import shutil
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

from emu3_megatron.config.filters import ClassifierConfig
from emu3_megatron.config.prepare import ClipsConfig, ImagesConfig, PrepareRecipe
from emu3_megatron.errors import InputError
from emu3_megatron.prepare.clips import decide_clips
from emu3_megatron.prepare.images import ScoreImages
from emu3_megatron.prepare.pipeline import prepare
from emu3_megatron.prepare.scores.classifiers import Classifier, Classifiers
from emu3_megatron.prepare.tables import read_table

SIDE = 16


def save_classifier(folder, **settings):
    """A ViT of two classes, in transformers' layout, that tells pictures well apart."""
    torch.manual_seed(0)
    small = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    config = ViTConfig(
        **small,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=8,
        id2label={0: "normal", 1: "nsfw"},
        label2id={"normal": 0, "nsfw": 1},
        **settings,
    )
    model = ViTForImageClassification(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(std=0.5)
    model.save_pretrained(folder)
    ViTImageProcessor(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights") / "nsfw"
    return folder, save_classifier(folder)


def picture(seed):
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return Image.fromarray(coarse).resize((64, 48), Image.Resampling.NEAREST)


def logits_of(model, image):
    """By hand: resized, each channel from -1 to 1, as the processor's defaults are."""
    small = image.resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    pixels_chw = torch.from_numpy(np.array(small)).permute(2, 0, 1).float() / 127.5 - 1
    with torch.no_grad():
        return model(pixel_values=pixels_chw.unsqueeze(0)).logits[0]


def test_the_score_is_the_probability_of_the_label(weights):
    folder, model = weights
    classify = Classifier("nsfw", ClassifierConfig(model=folder, label="NSFW"), "cpu")
    images = [picture(seed) for seed in range(4)]

    expected = [float(logits_of(model, image).softmax(0)[1]) for image in images]
    assert max(expected) - min(expected) > 0.1
    assert classify(images) == pytest.approx(expected, abs=1e-3)


def test_classes_that_do_not_exclude_each_other_have_probabilities_of_their_own(tmp_path):
    model = save_classifier(tmp_path / "m", problem_type="multi_label_classification")
    classify = Classifier("nsfw", ClassifierConfig(model=tmp_path / "m", label="nsfw"), "cpu")

    expected = float(logits_of(model, picture(1)).sigmoid()[1])
    assert classify([picture(1)]) == pytest.approx([expected], abs=1e-3)


def test_of_several_pictures_the_greatest_counts(weights):
    section = {"model": weights[0], "label": "nsfw"}
    config = ClipsConfig.model_validate({"source": "videos", "nsfw": section})
    measure = Classifiers(config, "cpu")
    images = [picture(seed) for seed in range(4)]

    assert measure(images) == {"nsfw": max(measure([image])["nsfw"] for image in images)}


# What is refused


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "missing"}, "watermark.model: .*missing: no such folder"),
        ({"label": "cat"}, "watermark.label: .*no class 'cat'; it has normal, nsfw"),
    ],
)
def test_other_weights_are_refused(weights, tmp_path, change, message):
    config = {"model": weights[0], "label": "nsfw", **change}
    if "model" in change:
        config["model"] = tmp_path / change["model"]

    with pytest.raises(InputError, match=message):
        Classifier("watermark", ClassifierConfig(**config), "cpu")


@pytest.mark.parametrize(
    "missing", ["config.json", "model.safetensors", "preprocessor_config.json"]
)
def test_half_a_folder_is_refused_in_one_line(weights, tmp_path, missing):
    shutil.copytree(weights[0], tmp_path / "half")
    (tmp_path / "half" / missing).unlink()

    with pytest.raises(InputError, match="half: cannot be loaded") as refused:
        Classifier("nsfw", ClassifierConfig(model=tmp_path / "half", label="nsfw"), "cpu")
    assert "\n" not in str(refused.value)


def test_without_transformers_it_is_named(monkeypatch, weights):
    monkeypatch.setitem(sys.modules, "transformers", None)

    with pytest.raises(InputError, match="pip install transformers"):
        Classifier("nsfw", ClassifierConfig(model=weights[0], label="nsfw"), "cpu")


# The pipeline


@pytest.fixture
def recipe(tmp_path, tokenizer, weights):
    """A function that makes a recipe over five captioned photos."""
    tokenizer.save(tmp_path / "tokenizer")
    folder = tmp_path / "photos"
    folder.mkdir()
    for seed in range(5):
        picture(seed).save(folder / f"{seed}.png")
        (folder / f"{seed}.txt").write_text(f"number {seed}", encoding="utf-8")
    nsfw = {"model": weights[0], "label": "nsfw"}

    def make(out="out", executor="local", **section):
        return PrepareRecipe.model_validate(
            {
                "out": tmp_path / out,
                "model": "emu3-tiny",
                "tokenizer": tmp_path / "tokenizer",
                "images": {
                    **{"source": folder, "min_side": 32, "min_quality": 0, "ocr": False},
                    **{"area": 1536, "nsfw": nsfw, "max_nsfw": 1.0, **section},
                },
                "packs": [{"context": 256, "kinds": ["images"]}],
                "run": {"executor": executor, "workers": 1, "task_items": 2},
            }
        )

    return make


def test_a_threshold_changes_without_a_new_look(recipe, monkeypatch):
    prepare(recipe(), ["images"])
    before = {row["source"]: row["nsfw"] for row in read_table(recipe().out / "images.parquet")}
    limit = sorted(before.values())[2]
    monkeypatch.setattr(ScoreImages, "__call__", None)

    manifest = prepare(recipe(max_nsfw=limit), ["images"])

    rows = read_table(recipe().out / "images.parquet")
    assert {row["source"]: row["nsfw"] for row in rows} == before
    assert [row["kept"] for row in rows] == [row["nsfw"] <= limit for row in rows]
    assert all(row["reason"].startswith("nsfw: ") for row in rows if not row["kept"])
    assert manifest["kinds"]["images"]["set_aside"] == {"nsfw": 2}


def test_a_score_can_be_selected_by(recipe):
    prepare(recipe(select={"columns": {"nsfw": 1}, "top": 0.2}), ["images"])

    rows = read_table(recipe().out / "images.parquet")
    (kept,) = [row for row in rows if row["kept"]]
    assert kept["nsfw"] == max(row["nsfw"] for row in rows)


def test_weights_that_are_missing_stop_the_run(recipe, tmp_path):
    wrong = recipe(watermark={"model": tmp_path / "nowhere", "label": "watermark"})

    with pytest.raises(InputError, match=r"watermark.model: .*nowhere: no such folder"):
        prepare(wrong, ["images"])


def test_clips_are_dropped_too():
    row = {"source": "a.mp4", "content": "0", "start_frame": 0, "end_frame": 100, "seconds": 4.0}
    row |= {"width": 64, "height": 48, "text_area": None, "flow": 0.05, "quality": 6.0}
    row |= {"error": None, "watermark": 0.7}
    section = {"model": "weights", "label": "watermark"}
    config = ClipsConfig.model_validate({"source": "videos", "watermark": section})

    decide_clips([row], config)

    assert row["reason"] == "watermark: 70.0%"


def test_nothing_is_measured_without_weights():
    assert Classifiers(ImagesConfig(source="photos"), "cpu")([picture(0)]) == {}
