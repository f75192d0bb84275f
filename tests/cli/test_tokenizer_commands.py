"""`emu3 tokenizer encode`, `decode` and `evaluate`, as one runs them."""

import errno
import hashlib
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torchmetrics
from PIL import Image
from support.processes import run_processes

from emu3_megatron.cli import main
from emu3_megatron.cli.tokenizer.evaluating import sizes_of
from emu3_megatron.config.tokenizer import TokenizerNetwork
from emu3_megatron.evaluation.fvd import frechet
from emu3_megatron.media.images import load_image, to_pixels
from emu3_megatron.media.writers import write_clip, write_png
from emu3_megatron.vision.tokenizer import VisionTokenizer

HEADS = Path(torchmetrics.__file__).parent / "functional" / "image" / "lpips_models"
SMALL = {"base_channels": 32, "channel_multiplier": (1, 1, 1, 1), "num_res_blocks": 1}
SIDE = ["--side", "32"]


def save_tokenizer(folder, seed=0):
    torch.manual_seed(seed)
    tokenizer = VisionTokenizer(TokenizerNetwork(codebook_size=64, **SMALL)).eval()
    torch.nn.init.normal_(tokenizer.quantize.embedding.weight, std=0.3)
    tokenizer.save(folder)
    return tokenizer


@pytest.fixture
def tokenizer(tmp_path):
    return save_tokenizer(tmp_path / "tokenizer")


@pytest.fixture
def files(tmp_path):
    """Two images, a clip of 12 frames, and a file that is none."""
    random = np.random.default_rng(0)
    folder = tmp_path / "files"
    for name in ("a.png", "deep/b.png"):
        write_png(folder / name, Image.fromarray(random.integers(0, 256, (32, 32, 3), np.uint8)))
    write_clip(folder / "c.mp4", torch.rand(12, 3, 32, 32) * 2 - 1, 12.0)
    (folder / "torn.png").write_bytes(b"\x89PNG")
    return folder


@pytest.fixture
def emu3(tmp_path, monkeypatch, capsys):
    """Runs `emu3 tokenizer …` in the folder; gives what it prints."""
    monkeypatch.chdir(tmp_path)

    def run(command, *words, code=None):
        arguments = ["tokenizer", command, "tokenizer", *map(str, words)]
        if code is None:
            main(arguments)
            return capsys.readouterr().out
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == code
        (line,) = capsys.readouterr().err.splitlines()
        return line

    return run


def rows_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_files_become_codes_and_pictures_again(tmp_path, tokenizer, files, emu3):
    said = emu3("encode", "files", "--out", "codes", *SIDE)

    assert "left out: torn.png: not a readable image" in said
    assert "3 files, 1 left out" in said
    rows = rows_of(tmp_path / "codes" / "files.jsonl")
    assert [(row["file"], row.get("shape")) for row in rows] == [
        ("a.png", [4, 4]),
        ("c.mp4", [3, 4, 4]),
        ("deep/b.png", [4, 4]),
        ("torn.png", None),
    ]
    codes = np.load(tmp_path / "codes" / "deep" / "b.png.npz")["codes"]
    pixels = to_pixels(load_image(files / "deep" / "b.png"))[None]
    expected = tokenizer.encode_images(torch.cat([pixels, pixels]))[0]
    assert codes.tolist() == expected.tolist()

    emu3("decode", "codes", "--out", "again")
    shown = tokenizer.decode_images(torch.from_numpy(codes.astype(np.int64))[None])[0]
    again = to_pixels(load_image(tmp_path / "again" / "deep" / "b.png.png"))
    assert (again - shown.clamp(-1, 1)).abs().max() <= 0.5 / 127.5 + 1e-6
    assert (tmp_path / "again" / "c.mp4.mp4").exists()


def test_encoding_goes_on_where_it_was(tmp_path, tokenizer, files, emu3):
    emu3("encode", "files", "--out", "codes", *SIDE)
    first = {path: path.stat().st_mtime_ns for path in (tmp_path / "codes").rglob("*.npz")}
    (tmp_path / "codes" / "c.mp4.npz").unlink()
    write_png(files / "a.png", Image.new("RGB", (32, 32)))  # changed

    emu3("encode", "files", "--out", "codes", *SIDE)

    again = {path: path.stat().st_mtime_ns for path in (tmp_path / "codes").rglob("*.npz")}
    assert {path.name for path in first if first[path] == again[path]} == {"b.png.npz"}
    line = emu3("encode", "files", "--out", "codes", "--side", "40", code=2)
    assert "was encoded with area 1024, not 1600" in line


def test_codes_of_another_tokenizer_are_refused(tmp_path, tokenizer, files, emu3):
    emu3("encode", "files", "--out", "codes", *SIDE)
    save_tokenizer(tmp_path / "tokenizer", seed=1)

    assert "encoded by another tokenizer" in emu3("decode", "codes", "--out", "again", code=2)


@pytest.mark.parametrize(
    ("codes", "said"),
    [
        (np.zeros((0, 4), np.int32), "not codes that emu3 tokenizer encode wrote"),
        (np.full((4, 4), np.nan), "not codes that emu3 tokenizer encode wrote"),
        (np.full((4, 4), -3), "codes -3 to -3: there are 64"),
    ],
)
def test_codes_that_cannot_be_decoded_are_named(tmp_path, tokenizer, files, emu3, codes, said):
    emu3("encode", "files", "--out", "codes", *SIDE)
    np.savez(tmp_path / "codes" / "a.png.npz", codes=codes, content="")

    lines = emu3("decode", "codes", "--out", "again").splitlines()

    assert f"left out: a.png.npz: {said}" in lines
    assert "2 files, 1 left out; pictures: again" in lines


def test_a_file_that_is_left_out_is_named_once(tmp_path, tokenizer, files, emu3):
    write_clip(files / "short.mp4", torch.zeros(3, 3, 32, 32), 12.0)

    said = emu3("encode", "files", "--out", "codes", *SIDE)

    assert "left out: short.mp4: 3 frames at 12 a second, a clip needs 4" in said


def test_a_full_disk_is_said_with_the_file(tmp_path, tokenizer, files, monkeypatch, capsys):
    def full(*arguments, **arrays):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["tokenizer", "encode", "tokenizer", "files", "--out", "codes", *SIDE])
    assert ended.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith("npz: No space left on device")
    assert not list((tmp_path / "codes").rglob("*.npz*"))


def evaluation(tmp_path):
    return json.loads((tmp_path / "out" / "evaluation.json").read_text(encoding="utf-8"))


def test_an_evaluation_says_what_was_kept_beside_what_needs_no_training(
    tmp_path, tokenizer, files, emu3
):
    out = ["--out", "out", "--baseline-from", "files", "--side", "64"]
    said = emu3("evaluate", "files", *SIDE, *out)

    found = evaluation(tmp_path)
    assert [size["size"] for size in found["sizes"]] == ["32 x 32", "64 x 64"]
    image, clip = found["sizes"][0]["image"], found["sizes"][0]["clip"]
    rows = rows_of(tmp_path / "out" / "files.jsonl")
    own = [row["psnr"] for row in rows if row["kind"] == "image" and row["size"] == [32, 32]]
    assert image["PSNR"] == pytest.approx(sum(own) / 2)
    assert (image["files"], image["LPIPS"], image["usage"]["tokens"]) == (2, None, 32)
    assert set(image["baselines"]) == {
        "mean colour",
        "4 principal components",
        "8 principal components",
        "4 components, k-means",
        "patches, k-means",
    }
    assert clip["files"] == 1
    assert clip["seam ratio"] > 0
    assert found["sizes"][0]["failed"][0]["file"] == "files/torn.png"
    assert re.search(r"tokenizer +\d+\.\d\d +\d\.\d+ +not computed", said)
    assert "FID of the images not computed, FVD of the clips not computed" in said
    assert "3,172 videos of Pexels" in said
    assert "went in" in (tmp_path / "out" / "page.html").read_text(encoding="utf-8")


def evaluate_in(folder):
    os.chdir(folder)
    main(["tokenizer", "evaluate", "tokenizer", "files", *SIDE, "--out", "out"])


def test_processes_share_an_evaluation(tmp_path, tokenizer, files, emu3):
    emu3("evaluate", "files", *SIDE, "--out", "out")
    alone = evaluation(tmp_path)

    run_processes(evaluate_in, 2, tmp_path)

    for kind in ("image", "clip"):
        one, shared = (found["sizes"][0][kind] for found in (alone, evaluation(tmp_path)))
        assert one.pop("usage") == shared.pop("usage")
        assert one.pop("baselines")["mean colour"] == pytest.approx(
            shared.pop("baselines")["mean colour"], abs=1e-6
        )
        assert shared == pytest.approx(one, abs=1e-6)


def test_the_papers_protocol_is_four_sizes_of_eight_frames():
    sizes = sizes_of(None, None, "emu3", None, None)

    assert list(map(str, sizes)) == ["128 x 128", "256 x 256", "512 x 512", "720 x 720"]
    assert {(at.fps, at.frames, at.is_square) for at in sizes} == {(12, 8, True)}


class Features(torch.nn.Module):
    """A network that is called as I3D is, and gives features of a clip."""

    def forward(
        self,
        clips: torch.Tensor,
        rescale: bool = False,
        resize: bool = False,
        return_features: bool = False,
    ):
        assert rescale
        assert resize
        assert return_features
        assert clips.shape[2] >= 8
        return clips[:, :, 4:].mean(dim=(2, 3, 4)) / 255


def test_fvd_is_the_distance_of_the_features_of_clips(tmp_path, tokenizer, files, emu3):
    torch.jit.script(Features()).save(str(tmp_path / "i3d.pt"))
    write_clip(files / "d.mp4", torch.rand(12, 3, 32, 32) - 1, 12.0)
    write_clip(files / "e.mp4", torch.rand(12, 3, 32, 32) * torch.rand(3, 1, 1), 12.0)

    emu3("evaluate", "files", *SIDE, "--fvd", "i3d.pt", "--out", "out")
    assert evaluation(tmp_path)["sizes"][0]["FVD"] > 0

    line = emu3("evaluate", "files", *SIDE, "--frames", "4", "--fvd", "i3d.pt", code=2)
    assert "takes no clip of 4 frames" in line


def test_frechet_is_the_distance_of_two_normal_distributions():
    draw = torch.Generator().manual_seed(0)
    one = torch.randn(50, 1, generator=draw, dtype=torch.float64)

    # of one dimension: (m - m')² + (s - s')²
    expected = (one.mean() - (2 * one + 3).mean()) ** 2 + one.std() ** 2
    assert frechet(one, 2 * one + 3) == pytest.approx(expected.item())


def test_lpips_is_computed_with_weights_given(tmp_path, tokenizer, files, emu3):
    kernels = [(64, 3, 11), (192, 64, 5), (384, 192, 3), (256, 384, 3), (256, 256, 3)]
    weights = {}
    for index, (after, before, side) in zip((0, 3, 6, 8, 10), kernels, strict=True):
        scale = (before * side * side) ** -0.5
        weights[f"features.{index}.weight"] = scale * torch.randn(after, before, side, side)
        weights[f"features.{index}.bias"] = torch.zeros(after)
    torch.save(weights, tmp_path / "net.pth")
    digest = hashlib.sha256((tmp_path / "net.pth").read_bytes()).hexdigest()
    given = ["--lpips", "net.pth", "--lpips-heads", HEADS / "alex.pth"]

    assert f"sha256 {digest} is of none of" in emu3("evaluate", "files", *SIDE, *given, code=2)
    emu3("evaluate", "files", *SIDE, *given, "--lpips-sha256", digest, "--out", "out")

    found = evaluation(tmp_path)
    assert found["networks"]["LPIPS"].startswith(f"lpips_alexnet {digest[:8]}")
    assert found["sizes"][0]["image"]["LPIPS"] > 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--side", "100"], "--side 100: must be divisible by 8, as 96 is"),
        (["--side", "0"], "--side 0: must be divisible by 8, as 8 is"),
        (["--side=-8"], "--side -8: must be divisible by 8, as 8 is"),
        (["--side", "32", "--area", "1024"], "give --side or --area, not both"),
        (["--protocol", "emu3", "--frames", "4"], "--protocol says sizes, --fps and --frames"),
        (["--lpips-heads", "alex.pth"], "LPIPS needs both --lpips"),
        (["--lpips", "net.pth"], "LPIPS needs both --lpips"),
        (["--lpips", "net.pth", "--lpips-heads", "alex.pth"], "net.pth: cannot be read"),
        (["--out", "files/a.png"], "--out files/a.png: is a file; name a folder"),
        (["--baseline-from", "broken"], "--baseline-from: not one of 1 files can be read"),
        (["--fid", "none.pt"], "none.pt: no such file"),
        (["--fvd", "none.pt"], "none.pt: no such file"),
        (["--trained-on", "files"], "has the content of the training file"),
    ],
)
def test_what_is_refused(tmp_path, tokenizer, files, emu3, words, said):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_bytes(b"not a picture")
    assert said in emu3("evaluate", "files", *words, code=2)


def test_baselines_of_another_kind_are_said_to_be_missing(tmp_path, tokenizer, files, emu3):
    photos = tmp_path / "photos"
    photos.mkdir()
    shutil.copy(tmp_path / "files" / "a.png", photos)
    said = emu3("evaluate", "files", *SIDE, "--baseline-from", "photos")
    assert "--baseline-from: has no clips; the mean colour alone stands beside clips" in said


def test_nan_is_refused_and_counted(tmp_path, tokenizer, files, emu3):
    torch.nn.init.constant_(tokenizer.decoder.conv_out.bias, torch.nan)
    tokenizer.save(tmp_path / "tokenizer")

    line = emu3("evaluate", "files", *SIDE, code=2)

    assert "files/a.png: NaN in 3,072 of 3,072 rebuilt values (2 other files alike)" in line


def test_a_folder_of_clips_that_are_too_short_is_refused(tmp_path, tokenizer, emu3):
    write_clip(tmp_path / "short" / "a.mp4", torch.zeros(3, 3, 32, 32), 12.0)

    line = emu3("evaluate", "short", *SIDE, code=2)

    assert "3 frames at 12 a second, a clip needs 4" in line
