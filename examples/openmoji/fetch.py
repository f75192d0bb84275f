"""OpenMoji as 64-pixel PNGs, for training a small vision tokenizer: 4,000 pictures and a test set.

python examples/openmoji/fetch.py FOLDER [openmoji-17.0.0.tgz]    # needs npm and resvg-py; 10 s

Writes FOLDER/train and FOLDER/test. OpenMoji draws 330 objects in five skin tones: one tone of each
object is in the test set, and in no training picture of that object. resvg-py is in the extra
`examples`.
"""

import hashlib
import json
import subprocess
import sys
import tarfile
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import resvg_py
from tqdm import tqdm

PACKAGE = "openmoji@17.0.0"
SIDE = 64
TONES = "12345"
Emoji = dict[str, Any]


def main() -> None:
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    out = Path(sys.argv[1])
    if out.exists() and any(out.iterdir()):
        sys.exit(f"{out} is not empty, nothing is overwritten: give a new folder")
    with tempfile.TemporaryDirectory() as scratch:
        archive = Path(sys.argv[2]) if len(sys.argv) == 3 else download(Path(scratch))
        emojis, drawings = read(archive)
    train, test = split(emojis)
    pictures = {code: rendered(drawings[code]) for code in tqdm([*train, *test], "render")}
    # A tone that does not show, on a gloved hand say, gives the same picture again.
    held_out = {pictures[code] for code in test}
    kept = [code for code in train if pictures[code] not in held_out]
    write(out / "train", kept, pictures)
    write(out / "test", test, pictures)
    unused = len(emojis) - len(kept) - len(test)
    print(f"{len(kept)} to train, {len(test)} to test, {unused} left out: they show what is tested")


def download(folder: Path) -> Path:
    """npm checks the archive against the registry's checksum."""
    command = ["npm", "pack", PACKAGE, "--silent", "--pack-destination", folder]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return next(folder.glob("*.tgz"))


def read(archive: Path) -> tuple[list[Emoji], dict[str, str]]:
    """The table of emojis, and each one's SVG by its code points."""
    drawings = {}
    emojis: list[Emoji] = []
    with tarfile.open(archive) as files:
        for member in files:
            name = Path(member.name)
            if name.match("package/color/svg/*.svg"):
                drawings[name.stem] = content_of(files, member).decode()
            elif name.match("package/data/openmoji.json"):
                emojis = json.loads(content_of(files, member))
    return emojis, drawings


def content_of(files: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    opened = files.extractfile(member)
    assert opened is not None, f"{member.name} is a folder"
    return opened.read()


def split(emojis: list[Emoji]) -> tuple[list[str], list[str]]:
    """Codes to train on and to test on; two people, one in the tested tone, are neither."""
    objects = defaultdict(list)
    for emoji in emojis:
        objects[emoji["skintone_base_hexcode"] if emoji["skintone"] else None].append(emoji)
    train = [emoji["hexcode"] for emoji in objects.pop(None, [])]
    test = []
    for base, toned in objects.items():
        tone = TONES[hashlib.sha256(base.encode()).digest()[0] % len(TONES)]
        train += [each["hexcode"] for each in toned if tone not in str(each["skintone"])]
        test += [each["hexcode"] for each in toned if str(each["skintone"]) == tone]
    return sorted(train), sorted(test)


def rendered(svg: str) -> bytes:
    return resvg_py.svg_to_bytes(
        svg_string=svg, background="#ffffff", skip_system_fonts=True, width=SIDE, height=SIDE
    )


def write(folder: Path, codes: list[str], pictures: dict[str, bytes]) -> None:
    folder.mkdir(parents=True)
    for code in codes:
        (folder / f"{code}.png").write_bytes(pictures[code])


if __name__ == "__main__":
    main()
