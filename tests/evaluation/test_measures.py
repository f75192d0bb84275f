"""Measures of images: similarity, FID; and tables beside the paper's numbers."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from emu3_megatron.cli import main
from emu3_megatron.errors import InputError
from emu3_megatron.evaluation.paper import Row, beside_paper
from emu3_megatron.evaluation.suites.scores import read_scores
from emu3_megatron.media.writers import write_png
from emu3_megatron.vision.measures.similarity import psnr_b, ssim_b


def images(folder, seeds, brightness=256):
    for seed in seeds:
        pixels = np.random.default_rng(seed).integers(0, brightness, (32, 24, 3), np.uint8)
        write_png(folder / f"{seed}.png", Image.fromarray(pixels))
    return folder


def test_psnr_and_ssim_are_those_of_scikit_image():
    random = np.random.default_rng(0)
    one = random.random((2, 3, 32, 24), np.float32)
    other = np.clip(one + random.normal(0, 0.1, one.shape), 0, 1).astype(np.float32)

    psnr = [peak_signal_noise_ratio(a, b, data_range=1) for a, b in zip(one, other, strict=True)]
    known = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    ssim = [
        structural_similarity(a, b, data_range=1, channel_axis=0, **known)
        for a, b in zip(one, other, strict=True)
    ]
    tensors = torch.from_numpy(one), torch.from_numpy(other)
    assert psnr_b(*tensors).tolist() == pytest.approx(psnr, rel=1e-5)
    assert ssim_b(*tensors).tolist() == pytest.approx(ssim, rel=1e-5)


class Means(torch.nn.Module):
    """A network that gives features as the Inception network does."""

    def forward(self, images: torch.Tensor, return_features: bool = False):
        assert return_features
        assert images.dtype == torch.uint8
        return images.float().mean(dim=(2, 3)) / 255


@pytest.fixture
def weights(tmp_path):
    torch.jit.script(Means()).save(str(tmp_path / "network.pt"))
    return tmp_path / "network.pt"


def fid(tmp_path, weights):
    main(["evaluate", "fid", str(tmp_path / "real"), str(tmp_path / "drawn"), *weights])


def test_fid_is_the_distance_of_two_normal_distributions(tmp_path, weights, capsys):
    folders = images(tmp_path / "real", range(8)), images(tmp_path / "drawn", range(8), 128)

    fid(tmp_path, ["--weights", str(weights)])

    def features(folder):
        pixels = [np.asarray(Image.open(path)) / 255 for path in sorted(folder.glob("*.png"))]
        means_nc = np.array([image.mean(axis=(0, 1)) for image in pixels])
        return means_nc.mean(0), np.cov(means_nc.T)

    (mean, covariance), (other_mean, other_covariance) = map(features, folders)
    roots = np.sqrt(np.linalg.eigvals(covariance @ other_covariance).real.clip(0)).sum()
    distance = ((mean - other_mean) ** 2).sum() + np.trace(covariance + other_covariance)
    said = capsys.readouterr().out
    measured = float(re.search(r"FID ([\d.e-]+):", said)[1])
    assert measured == pytest.approx(distance - 2 * roots, rel=1e-3)
    assert "8 images against 8" in said


def test_fid_is_refused_without_weights(tmp_path):
    with pytest.raises(SystemExit) as ended:
        fid(tmp_path, [])
    assert ended.value.code == 2


def test_fid_is_refused_with_weights_that_are_none(tmp_path, capsys):
    (tmp_path / "network.pt").write_bytes(b"no network")

    for name, message in [("network.pt", "no TorchScript network"), ("none.pt", "no such file")]:
        with pytest.raises(SystemExit):
            fid(tmp_path, ["--weights", str(tmp_path / name)])
        assert message in capsys.readouterr().err


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_scores_of_geneval(tmp_path):
    lines = [("colors", True), ("colors", False), ("counting", True)]
    text = "".join(json.dumps({"tag": tag, "correct": right}) + "\n" for tag, right in lines)

    scores = read_scores("geneval", [write(tmp_path / "results.jsonl", text)])

    assert scores == {"colors": 0.5, "counting": 1.0, "overall": 0.75}


def test_scores_of_compbench(tmp_path):
    answers = [{"question_id": 0, "answer": "0.5000"}, {"question_id": 1, "answer": "0.2500"}]
    folder = tmp_path / "color_val"
    write(folder / "annotation_blip" / "vqa_result.json", json.dumps(answers))

    assert read_scores("t2i-compbench", [folder]) == {"color": 0.375}


def test_scores_of_dpg_bench(tmp_path):
    text = (
        "images/0.png, 1.0, 0.5\nModel: images\nL1 category scores:\n\tentity: 80.5\n"
        "L2 category scores:\n\tentity - whole: 79.0\nImage path: x\nDPG-Bench score: 81.25\n"
    )

    scores = read_scores("dpg-bench", [write(tmp_path / "results.txt", text)])

    assert scores == {"overall": 81.25, "entity": 80.5}


def test_scores_of_vbench_with_the_total_of_all_dimensions(tmp_path):
    highest = {
        **dict.fromkeys(["subject_consistency", "background_consistency"], 1.0),
        **dict.fromkeys(["temporal_flickering", "aesthetic_quality", "imaging_quality"], 1.0),
        **dict.fromkeys(["dynamic_degree", "object_class", "multiple_objects"], 1.0),
        **dict.fromkeys(["human_action", "color", "spatial_relationship"], 1.0),
        **{"motion_smoothness": 0.9975, "scene": 0.8222, "appearance_style": 0.2855},
        **{"temporal_style": 0.364, "overall_consistency": 0.364},
    }
    results = {name: [value, []] for name, value in highest.items()}
    path = write(tmp_path / "x_eval_results.json", json.dumps(results))

    scores = read_scores("vbench", [path])

    assert scores["total"] == pytest.approx(100)
    assert scores["scene"] == pytest.approx(82.22)


@pytest.mark.parametrize("suite", ["geneval", "t2i-compbench", "dpg-bench", "vbench"])
def test_results_of_something_else_are_refused(tmp_path, suite):
    path = write(tmp_path / "results.jsonl", "{}\n")

    with pytest.raises(InputError, match=r"results\.jsonl"):
        read_scores(suite, [path])


def test_a_table_holds_ours_the_papers_and_its_conditions():
    lines = beside_paper("geneval", [Row("ours", {"overall": 0.125})])

    (overall,) = [line.split() for line in lines if "overall" in line]
    assert lines[0].split()[:2] == ["ours", "Emu3"]
    assert overall == ["overall", "0.125", "0.54", "0.66", "0.52", "0.64"]
    assert "guidance 5.5" in lines[-1]
