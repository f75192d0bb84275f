"""What is to be drawn, its file names, and the record of a folder of drawings."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emu3_megatron.errors import InputError
from emu3_megatron.files import replacing
from emu3_megatron.generation.files.prompts import Prompt, first_seeds
from emu3_megatron.grammar import Meta
from emu3_megatron.media.files import IMAGE_SUFFIXES, VIDEO_SUFFIXES

RECORD = "generated.jsonl"
_NAMED = 40  # characters of a prompt in a file name


@dataclass(frozen=True)
class Output:
    """One image or clip to draw.

    Attributes:
        seed: of its draws.
        path: of its file.
        in_folder: among others, with a record of all.
    """

    prompt: Prompt
    seed: int
    path: Path
    in_folder: bool = True

    @property
    def meta(self) -> Meta:
        """Its grid."""
        assert self.prompt.meta is not None, "an answer is no drawing"
        return self.prompt.meta


def outputs_of(
    prompts: Sequence[Prompt], each: int, seed: int, out: Path, suffixes: Sequence[str]
) -> list[Output]:
    """Each prompt `each` times, with seeds one after another.

    Args:
        out: the file of the only output, else a folder.
        suffixes: that a file may have; those in a folder have the first.

    Raises:
        InputError: a file is named for several.
    """
    seeds = [
        (number, prompt, first + i)
        for number, (prompt, first) in enumerate(
            zip(prompts, first_seeds(prompts, each, seed), strict=True)
        )
        for i in range(each)
    ]
    if out.suffix in suffixes:
        if len(seeds) > 1:
            raise InputError(f"--out {out}: one file for {len(seeds):,}; name a folder")
        return [Output(prompt, seed, out, in_folder=False) for _, prompt, seed in seeds]
    digits = max(3, len(str(len(prompts) - 1)))
    name = lambda number, text, seed: f"{number:0{digits}}-{_slug(text)}-seed-{seed}{suffixes[0]}"
    return [Output(p, s, out / name(number, p.text, s)) for number, p, s in seeds]


def check_suffix(out: Path, suffixes: Sequence[str]) -> None:
    """Raises InputError when a file is named that holds something else by its suffix."""
    others = (IMAGE_SUFFIXES | VIDEO_SUFFIXES) - {*suffixes}
    if out.suffix.lower() in others and not out.is_dir():
        known = " or ".join(suffixes)
        raise InputError(f"--out {out}: name a file that ends in {known}, or a folder")


def make_folders(outputs: Sequence[Output]) -> None:
    """Make the folders that outputs go to, before any is drawn: OSError if that cannot be."""
    for folder in {output.path.parent for output in outputs}:
        folder.mkdir(parents=True, exist_ok=True)


def _slug(text: str) -> str:
    """A prompt as a part of a file name."""
    words = re.findall(r"\w+", text.lower())
    return "-".join(words)[:_NAMED].strip("-") or "no-words"


def batches_of(outputs: Sequence[Output], size: int) -> list[list[Output]]:
    """Outputs in order, up to `size` a batch, in which seeds count upwards."""
    batches: list[list[Output]] = []
    for output in outputs:
        follows = batches and batches[-1][-1].seed + 1 == output.seed
        if not follows or len(batches[-1]) == size:
            batches.append([])
        batches[-1].append(output)
    return batches


def write_record(outputs: Sequence[Output], about: Callable[[Output], dict[str, Any]]) -> None:
    """Add outputs to the record of their folder, a line of JSON for each file.

    Args:
        about: what is said of a output besides its file, prompt and seed.
    """
    path = outputs[0].path.parent / RECORD
    lines = {}
    if path.is_file():
        lines = {
            json.loads(line)["file"]: line for line in path.read_text(encoding="utf-8").splitlines()
        }
    for output in outputs:
        said = {
            "file": output.path.name,
            "prompt": output.prompt.text,
            "seed": output.seed,
            **about(output),
        }
        lines[output.path.name] = json.dumps(said, ensure_ascii=False)
    with replacing(path) as beside:
        beside.write_text("".join(f"{line}\n" for line in lines.values()), encoding="utf-8")
