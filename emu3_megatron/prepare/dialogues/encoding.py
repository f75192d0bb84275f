"""Codes of the images and clips of dialogues, each encoded once, whatever rows show it."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from PIL import Image
from torch import Tensor

from emu3_megatron.config.dialogues import DialoguesConfig
from emu3_megatron.errors import InputError
from emu3_megatron.grammar import Vision
from emu3_megatron.media.files import UnreadableError, file_named
from emu3_megatron.media.images import MAX_ASPECT, decode_image, read_image, resize_within
from emu3_megatron.media.videos import read_overview
from emu3_megatron.prepare.codes import Coder
from emu3_megatron.prepare.codes_files import Coded, read_errors, write_codes
from emu3_megatron.prepare.dialogues.shown import FileState, Shown, read_inside
from emu3_megatron.prepare.items import Failed, attempt
from emu3_megatron.prepare.workspace import Workspace, digest, stable_chunks
from emu3_megatron.vision.tokenizer import TEMPORAL_FACTOR
from emu3_megatron.vocabulary import Vocabulary


@dataclass(frozen=True)
class FirstShown:
    """Where an image or a clip is first shown, as `FILE: row NUMBER`, and its file's state."""

    row: str
    state: FileState


@dataclass(frozen=True)
class EncodeTask:
    """Images and clips that are encoded into one file.

    Attributes:
        rows: `FILE: row NUMBER` that shows each first.
    """

    out: Path
    shown: list[Shown]
    rows: list[str]

    @property
    def size(self) -> int:
        return len(self.shown)


class EncodeShown:
    """Encodes images and clips. What cannot be read leaves its reason; with `strict` it raises."""

    def __init__(
        self,
        config: DialoguesConfig,
        folders: tuple[Path, Path],
        tokenizer: Path,
        strict: bool,
        vocabulary: Vocabulary,
        device: str,
    ):
        self._config, self._strict = config, strict
        self._sources, self._media = folders
        self._coder = Coder(tokenizer, vocabulary, device)
        self._vocabulary = vocabulary

    def __call__(self, task: EncodeTask) -> None:
        found: dict[int, Coded | str] = {}
        images: dict[int, Image.Image] = {}
        inside = dict(read_inside(self._sources, task.shown))
        for place, shown in enumerate(task.shown):
            one = self._read(shown, inside.get(shown.name))
            if isinstance(one, Failed):
                reason = f"unreadable: {shown.name}: {one.reason}"
                self._refuse(f"{task.rows[place]}: {reason}")
                found[place] = reason
            elif isinstance(one, Vision):
                found[place] = Coded(one)
            else:
                images[place] = one
        codes = self._coder.images(list(images.values()))
        found.update({p: Coded(Vision.image(c)) for p, c in zip(images, codes, strict=True)})
        write_codes(task.out, found.items(), self._vocabulary)

    def _refuse(self, reason: str) -> None:
        if self._strict:
            raise InputError(f"{reason}; repair it, or set odd rows aside with --skip-bad")

    def _read(self, shown: Shown, data: bytes | None) -> Image.Image | Vision | Failed:
        """An image, or a clip's codes: images are encoded together."""
        name = str(shown)
        if shown.kind != "video":
            return attempt(name, partial(self._image, shown, data))
        clip = attempt(name, partial(self._frames, shown.name))
        if isinstance(clip, Failed):
            return clip
        return attempt(name, partial(self._encoded, *clip), timed=False)

    def _image(self, shown: Shown, data: bytes | None) -> Image.Image:
        if shown.kind == "inside":
            if data is None:
                raise UnreadableError(shown.name, "its row cannot be read any more")
            image = decode_image(data, shown.name).image
        else:
            image = read_image(file_named(self._media, shown.name)).image
        _refuse_narrow(shown.name, *image.size)
        return resize_within(image, self._config.min_area, self._config.max_area)

    def _frames(self, name: str) -> tuple[Tensor, float]:
        """A clip's pixels, and their frames a second."""
        config, path = self._config, file_named(self._media, name)
        try:
            pixels_tchw, fps = read_overview(
                path, area=config.clip_area, fps=config.clip_fps, max_frames=config.clip_frames
            )
        except UnreadableError:
            raise
        except InputError as error:  # too narrow
            raise UnreadableError(path, str(error).removeprefix(f"{path}: ")) from None
        if len(pixels_tchw) < TEMPORAL_FACTOR:
            raise UnreadableError(path, f"{len(pixels_tchw)} frames at {fps:g} a second, too short")
        return pixels_tchw, fps

    def _encoded(self, pixels_tchw: Tensor, fps: float) -> Vision:
        codes_fhw = self._coder.clip([pixels_tchw])
        return Vision.clip(codes_fhw, fps, round(len(codes_fhw) * TEMPORAL_FACTOR / fps, 3))


def _refuse_narrow(name: str, width: int, height: int) -> None:
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise UnreadableError(name, f"{width}x{height} is narrower than 1:{MAX_ASPECT}")


@dataclass(frozen=True)
class Encoded:
    """Where the codes of images and clips lie, and why some have none.

    Attributes:
        places: file and place in it, of each by its name.
        errors: reasons, by name.
    """

    places: dict[str, tuple[Path, int]]
    errors: dict[str, str]


def encode_shown(
    workspace: Workspace,
    config: DialoguesConfig,
    folders: tuple[Path, Path],
    first: Mapping[str, FirstShown],
    settings: str,
    strict: bool,
) -> Encoded:
    """Encode everything that rows show, once; what was encoded before is not encoded again.

    Args:
        folders: of the files of rows, and of the media.
        first: what is shown, by `str(Shown)`.
        settings: hash of what decides the codes, besides the pixels.

    Raises:
        InputError: there are images or clips and no tokenizer; or with `strict`, one cannot be
            encoded.
    """
    recipe = workspace.recipe
    if not first:
        return Encoded({}, {})
    tasks = _tasks(workspace, first, settings)
    assert recipe.tokenizer is not None
    vocabulary, device = recipe.vocabulary(), recipe.run.device
    make = partial(EncodeShown, config, folders, recipe.tokenizer, strict, vocabulary, device)
    workspace.run(make, tasks, "dialogues: codes/item", on_device=True)
    places, errors = {}, {}
    for task in tasks:
        failed = read_errors(task.out)
        for place, shown in enumerate(task.shown):
            if place in failed:
                errors[str(shown)] = failed[place]
            else:
                places[str(shown)] = (task.out, place)
    return Encoded(places, errors)


def _tasks(
    workspace: Workspace, first: Mapping[str, FirstShown], settings: str
) -> list[EncodeTask]:
    folder = workspace.work("dialogues", "codes")
    tasks = []
    for names in stable_chunks(list(first), workspace.recipe.run.task_items):
        shown = [Shown.parse(name) for name in names]
        name = digest(settings, names, [first[n].state for n in names])
        tasks.append(EncodeTask(folder / f"{name}.npz", shown, [first[n].row for n in names]))
    return tasks
