"""The demo's page, from canned results and a folder as the demo leaves it."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from emu3_megatron.config.tokenizer import TokenizerNetwork
from emu3_megatron.demo.documents import Asked, Trained
from emu3_megatron.demo.material import PHOTOS
from emu3_megatron.demo.posttraining import SHOWN
from emu3_megatron.demo.report import write_report
from emu3_megatron.demo.results import MODELS, Generated, Later, Results
from emu3_megatron.demo.stages import stages_of
from emu3_megatron.grammar import Meta, Vision
from emu3_megatron.vision.tokenizer import VisionTokenizer

METRICS = {
    "tokenizer-run": [{"psnr_db": 12.0}, {"psnr_db": 24.0}],
    "decoder-run": [{"loss": 6.5, "accuracy_code": 0.1}, {"loss": 0.5, "accuracy_code": 0.9}],
    "stage2-run": [{"loss": 4.0, "validation/nll_code": 5.0}],
    "quality-run": [{"loss": 3.0, "validation/loss": 3.5}],
    "preferences-run": [{"rewards/accuracies": 0.5}, {"rewards/accuracies": 0.75}],
    "image-to-text-run": [{"loss": 2.0, "validation/loss": 2.5}],
    "instruct-run": [{"loss": 1.0, "validation/loss": 1.5}],
}
MANIFEST = {
    "format": "emu3-megatron/prepared/1",
    "kinds": {"images": {"found": 10, "kept": 9, "shards": [{"documents": 18, "tokens": 5000}]}},
    "packs": [{"path": "packs/stage1.pack", "context": 704, "packs": 8, "fill": 0.875}],
}


@pytest.fixture(scope="module")
def tokenizer():
    torch.manual_seed(0)
    return VisionTokenizer(TokenizerNetwork(preset="tiny")).eval()


@pytest.fixture
def out(tmp_path):
    for folder in (
        "photos",
        "data",
        "transformers",
        "views-held-out",
        "decoder-run/samples/step-2",
    ):
        (tmp_path / folder).mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "photos" / "cat.png")
    (tmp_path / "photos" / "cat.txt").write_text("a <cat>", encoding="utf-8")
    (tmp_path / "data" / "manifest.json").write_text(json.dumps(MANIFEST), encoding="utf-8")
    (tmp_path / "transformers" / "config.json").write_text("{}", encoding="utf-8")
    for path in ("decoder-run/samples/step-2/0.png", "picture.png", SHOWN):
        Image.new("RGB", (48, 32)).save(tmp_path / path)
    (tmp_path / "answer.jsonl").write_text('{"answer": "A <dahlia>."}', encoding="utf-8")
    for run, rows in METRICS.items():
        (tmp_path / run).mkdir(exist_ok=True)
        lines = [json.dumps({"step": step, **row}) for step, row in enumerate(rows, 1)]
        (tmp_path / run / "metrics.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return tmp_path


def results_of(out, later=None):
    image, clip = np.zeros((1, 4, 6), np.int64), np.zeros((2, 4, 6), np.int64)
    drawn = image.copy()
    drawn[0, 0] = 1  # a quarter of the codes is another
    trained = [Trained("a <cat>", Vision(Meta(4, 6), image))]
    film = Trained("it moves", Vision(Meta(4, 6, 2, 8.0, 1.0), clip))
    first = Generated(trained, [drawn], ["a dog"], film, clip.copy())
    names = [stage.name for stage in stages_of("all")]
    commands = {name: [f"emu3 {name} --out 'a b'"] for name in names}
    return Results(out, 21.5, first, later, dict.fromkeys(names, 90.0), commands)


@pytest.fixture
def later():
    clip, picture = np.zeros((2, 4, 6), np.int64), np.zeros((4, 6), np.int64)
    view = Trained("a cat", Vision(Meta(4, 6), picture[None]))
    film = Trained("it moves", Vision(Meta(4, 6, 2, 8.0, 1.0), clip))
    asked = Asked(np.zeros(1, np.int32), picture, "What is <this>?", "a cat")
    later = Later(film, [view], [asked])
    for number, model in enumerate(MODELS):
        later.losses[model] = {
            "codes of views": 6.0 - number,
            "codes of the most colourful": 5.0 - number,
        }
        later.drawn[model] = [[Image.new("RGB", (48, 32))] * 4] * len(PHOTOS)
        later.colour[model] = [[10.0 + number] * 4] * len(PHOTOS)
        later.continued[model] = clip
        later.captions[model] = ["a cat" if model == "image-to-text" else "a dog"]
        later.answers[model] = ["a cat" if model in ("instruct", "read-back") else "cats"]
    return later


def page(stages, results, tokenizer):
    write_report(stages, results, tokenizer)
    return (results.out / "report.html").read_text(encoding="utf-8")


def test_the_page_shows_what_was_made_beside_what_was_trained(out, tokenizer):
    html = page(stages_of("first"), results_of(out), tokenizer)

    assert "<td>a &lt;cat&gt;</td><td>75.0%</td><td>a dog</td>" in html
    assert "<td>it moves</td><td>100.0%</td>" in html
    assert "<td>images</td><td>9 of 10</td><td>18</td><td>5,000</td>" in html
    # The photo; what the tokenizer keeps; both again beside what was drawn; two clips; a sample.
    assert len(re.findall("<img", html)) == 1 + 1 + 3 + 2 + 1
    for curve in ("loss: 6.5 → 0.5", "accuracy on codes: 0.1 → 0.9", "dB: 12 → 24"):
        assert curve in html


def test_every_stage_has_its_part_with_time_and_commands(out, tokenizer, later):
    html = page(stages_of("all"), results_of(out, later), tokenizer)

    for number, stage in enumerate(stages_of("all"), 1):
        assert f"<h2>{number}. {stage.title}</h2>" in html
        assert f"<pre>$ emu3 {stage.name} --out &#39;a b&#39;</pre>" in html
    assert html.count("<td>90 s</td>") == len(stages_of("all"))


def test_every_change_stands_in_the_table_in_front(out, tokenizer, later):
    html = page(stages_of("all"), results_of(out, later), tokenizer)

    rows = re.findall("<tr>(.*?)</tr>", html.split("<h2>")[0])
    cells = {row[0]: row[2:4] for row in (re.findall("<td>(.*?)</td>", row) for row in rows) if row}
    assert cells["Pre-training, stage 1"] == ["6.50", "0.50"]
    assert cells["Pre-training, stage 2"] == ["6.00", "5.00"]
    assert cells["Quality fine-tuning"] == ["11.0", "12.0"]
    assert cells["Preferences (DPO)"] == ["50% without effect", "100%"]
    assert cells["Image to text"] == ["0 of 1", "1 of 1"]
    assert cells["Instruction tuning"] == ["0 of 1", "1 of 1"]
    assert cells["Export"] == ["", "1 of 1"]
    assert cells["Generation"] == ["", "A &lt;dahlia&gt;."]


def test_what_a_model_says_is_shown_beside_what_it_said_before(out, tokenizer, later):
    html = page(stages_of("all"), results_of(out, later), tokenizer)

    assert "<td>a dog</td><td>a cat</td>" in html
    assert "<td>What is &lt;this&gt;?</td><td>cats</td><td>a cat</td>" in html
    assert "<td>codes of views</td><td>6.00</td><td>5.00</td>" in html


def test_the_summary_has_the_figures_of_the_page(later):
    figures = later.figures()

    assert figures["nll_codes_of_views"] == {"stage-1": 6.0, "stage-2": 5.0}
    assert figures["preferred"] == 1.0
    assert figures["exact_captions"] == {"stage-2": 0, "image-to-text": 1}
    assert figures["exact_answers"] == {"image-to-text": 0, "instruct": 1, "read-back": 1}
