"""There is one reader: the tokenizer is trained on the pixels that prepare encodes."""

import ast
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.media import write_video

import emu3_megatron
from emu3_megatron.config.prepare import ClipsConfig, ImagesConfig
from emu3_megatron.config.tokenizer_training import TokenizerData, TokenizerNetwork
from emu3_megatron.media.images import scaled
from emu3_megatron.prepare.clip_codes import EncodeVideo, VideoTask
from emu3_megatron.prepare.clips import ScoreClips
from emu3_megatron.prepare.images import EncodeImages, EncodeTask, ScoreImages
from emu3_megatron.tokenizer_training.samples import Samples
from emu3_megatron.vision.tokenizer import VisionTokenizer
from emu3_megatron.vocabulary import Vocabulary

PACKAGE = Path(emu3_megatron.__file__).parent
AREA = 32 * 24


def textured(size=(64, 48), seed=0):
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def deep(path):
    grey = np.asarray(textured().convert("L"), np.uint16)
    Image.fromarray(grey * 257).save(path / "a.png")


def transparent(path):
    image = textured().convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    image.save(path / "a.png")


def turned(path):
    exif = Image.Exif()
    exif[0x0112] = 6
    textured().save(path / "a.jpg", exif=exif)


def cmyk(path):
    textured().convert("CMYK").save(path / "a.jpg")


def animated(path):
    textured().save(path / "a.gif", save_all=True, append_images=[textured(seed=1)])


def rotated(path):
    write_video(path / "a.mp4", [textured(seed=i // 2) for i in range(8)], rotation=90)


def variable(path):
    images = [textured(seed=i) for i in range(8)]
    times = [0, 0.125, 0.25, 0.375, 0.75, 0.875, 1.0, 1.25]
    write_video(path / "a.mp4", images, times)


@pytest.fixture
def encoded_pixels(tmp_path, monkeypatch):
    """A function: the pixels [n, 3, h, w] that prepare hands to the tokenizer, of one item."""
    VisionTokenizer(TokenizerNetwork(preset="tiny")).save(tmp_path / "tokenizer")
    seen = []

    original = VisionTokenizer.frame_latents

    def look(tokenizer, pixels_nchw):
        seen.append(scaled(pixels_nchw))
        return original(tokenizer, pixels_nchw)

    monkeypatch.setattr(VisionTokenizer, "frame_latents", look)

    def encode(stage, make_task, config, row):
        task = make_task(tmp_path / "part.npz", [{**row, "captions": ["a caption"]}])
        stage(config, tmp_path / "tokenizer", Vocabulary.tiny(), "cpu")(task)
        return torch.cat(seen)

    return encode


@pytest.mark.parametrize("make", [deep, transparent, turned, cmyk, animated])
def test_an_image_is_the_same_to_the_tokenizer_and_to_prepare(tmp_path, encoded_pixels, make):
    folder = tmp_path / "images"
    folder.mkdir()
    make(folder)
    (path,) = folder.iterdir()
    data = TokenizerData(images=folder, area=AREA, crop=None)
    config = ImagesConfig(source=folder, area=AREA, ocr=False)

    trained_on = Samples(data, seed=0).read(0).pixels
    row = ScoreImages(config, "cpu").score(path.name)
    (encoded,) = encoded_pixels(EncodeImages, EncodeTask, config, row)

    assert torch.equal(trained_on, encoded)


@pytest.mark.parametrize("make", [rotated, variable])
def test_a_clip_is_the_same_to_the_tokenizer_and_to_prepare(tmp_path, encoded_pixels, make):
    folder = tmp_path / "clips"
    folder.mkdir()
    make(folder)
    textured().save(tmp_path / "a.png")
    config = ClipsConfig(source=folder, area=AREA, ocr=False, content_threshold=255)
    (row,) = ScoreClips(config, "cpu").score("a.mp4")
    data = TokenizerData(
        images=tmp_path,
        clips=folder,
        clip_share=1,
        clip_frames=8,
        clip_fps=row["fps"],
        area=AREA,
        crop=None,
    )

    trained_on = Samples(data, seed=0).read(0).pixels
    encoded = encoded_pixels(EncodeVideo, VideoTask, config, row)

    assert torch.equal(trained_on, encoded)
    assert encoded.shape == ((8, 3, 32, 24) if make is rotated else (8, 3, 24, 32))


def calls_of(file):
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func)


def test_nobody_else_opens_images_or_videos():
    readers = {"Image.open", "av.open", "cv2.imread", "cv2.VideoCapture", "VideoStreamAv"}
    files = (file for file in PACKAGE.rglob("*.py") if readers & {*calls_of(file)})

    packages = {file.relative_to(PACKAGE).parts[0] for file in files}

    # runs/, which may not import media/, gives TensorBoard the PNGs that we drew ourselves.
    assert packages <= {"media", "runs"}
