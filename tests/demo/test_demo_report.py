"""The demo's report, from a folder as the demo leaves it."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from emu3_megatron.config.tokenizer import TokenizerNetwork
from emu3_megatron.demo.report import Generated, Trained, write_report
from emu3_megatron.grammar import Meta, Vision
from emu3_megatron.vision.tokenizer import VisionTokenizer

METRICS = {
    "decoder-run": [{"loss": 6.5, "accuracy_code": 0.1}, {"loss": 0.5, "accuracy_code": 0.9}],
    "tokenizer-run": [{"psnr_db": 12.0}, {"psnr_db": 24.0}],
}


@pytest.fixture
def tokenizer():
    torch.manual_seed(0)
    return VisionTokenizer(TokenizerNetwork(preset="tiny")).eval()


@pytest.fixture
def out(tmp_path):
    (tmp_path / "photos").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "photos" / "cat.png")
    (tmp_path / "photos" / "cat.txt").write_text("a <cat>")
    for run, rows in METRICS.items():
        samples = tmp_path / run / "samples" / "step-2"
        samples.mkdir(parents=True)
        Image.new("RGB", (48, 32)).save(samples / "0.png")
        lines = [json.dumps({"step": step, **row}) for step, row in enumerate(rows, 1)]
        (tmp_path / run / "metrics.jsonl").write_text("\n".join(lines))
    return tmp_path


def test_the_report_shows_what_was_made_beside_what_was_trained(out, tokenizer):
    image, clip = np.zeros((1, 4, 6), np.int32), np.zeros((2, 4, 6), np.int64)
    drawn, continued = image.copy(), clip.copy()
    drawn[0, 0] = 1  # a quarter of the codes is another
    made = Generated(
        [Trained("a <cat>", Vision(Meta(4, 6), image))],
        [drawn],
        ["a dog"],
        Trained("it moves", Vision(Meta(4, 6, 2, 8.0, 1.0), clip)),
        continued,
    )

    write_report(out, tokenizer, made, {"code_match": 0.75}, area=32 * 48)

    html = (out / "report.html").read_text()
    assert "<td>a &lt;cat&gt;</td><td>75.0%</td><td>a dog</td>" in html
    assert "<td>it moves</td><td>100.0%</td>" in html
    assert "<td>code_match</td><td>0.75</td>" in html
    assert len(re.findall("<img", html)) == 3 + 2 + 1  # an image, a clip, a sample
    for curve in ("loss: 6.5 → 0.5", "accuracy on codes: 0.1 → 0.9", "PSNR in dB: 12 → 24"):
        assert curve in html
