"""Images and clips are written so that others open them."""

import av
import pytest
import torch
from PIL import Image

from emu3_megatron.errors import InputError
from emu3_megatron.media.images import load_image
from emu3_megatron.media.writers import write_clip, write_png


def test_an_image_comes_back_from_its_png(tmp_path):
    image = Image.effect_noise((16, 8), 60).convert("RGB")

    write_png(tmp_path / "deep" / "a.png", image)

    assert load_image(tmp_path / "deep" / "a.png").tobytes() == image.tobytes()


def test_a_clip_is_written_as_an_animation(tmp_path):
    brightness = torch.tensor([-0.5, 0, 0.5]).view(3, 1, 1, 1)

    write_clip(tmp_path / "clip.gif", brightness.expand(3, 3, 16, 16), fps=10)

    with Image.open(tmp_path / "clip.gif") as image:
        assert image.size == (16, 16)
    with av.open(str(tmp_path / "clip.gif")) as container:
        assert container.streams.video[0].average_rate == 10


def test_a_clip_of_an_unknown_kind_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"clip\.xyz"):
        write_clip(tmp_path / "clip.xyz", torch.zeros(1, 3, 16, 16), fps=10)
