"""How each suite's own scorer finds samples, after its code; and small prompts files of each."""

import json
import os
import re
from pathlib import Path
from typing import Any

from PIL import Image

GENEVAL = [
    {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a bench"},
    {"tag": "colors", "include": [{"class": "cow", "count": 1}], "prompt": "a cow", "exclude": []},
]
VBENCH = [
    {"prompt_en": "In a still frame, a stop sign", "dimension": ["temporal_flickering"]},
    {"prompt_en": "rock-carved façades - 2", "dimension": ["overall_consistency"]},
    {"prompt_en": "The bund", "dimension": ["appearance_style"]},
    {"prompt_en": "The bund", "dimension": ["overall_consistency"]},
]
COMPBENCH = "a green bench and a blue bowl\r\nHe sat. She stood.\r\n"
DPG_BENCH = {"0": "Hounds run.\n", "whoops3": "A cup, upside down."}


def write_prompts(folder: Path) -> dict[str, list[Path]]:
    """A small prompts file of each suite, by the suite's name."""
    files = {
        "geneval": folder / "evaluation_metadata.jsonl",
        "t2i-compbench": folder / "color_val.txt",
        "vbench": folder / "VBench_full_info.json",
        "dpg-bench": folder / "prompts",
    }
    files["geneval"].write_text(
        "".join(json.dumps(record) + "\n" for record in GENEVAL), encoding="utf-8"
    )
    files["t2i-compbench"].write_bytes(COMPBENCH.encode())
    files["vbench"].write_text(json.dumps(VBENCH), encoding="utf-8")
    files["dpg-bench"].mkdir()
    for name, text in DPG_BENCH.items():
        (files["dpg-bench"] / f"{name}.txt").write_text(text, encoding="utf-8")
    return {name: [path] for name, path in files.items()}


def found_by_geneval(folder: Path) -> dict[str, int]:
    """Samples of each prompt (djghosh13/geneval @ af4902f, evaluation/evaluate_images.py, main)."""
    found: dict[str, int] = {}
    for subfolder in os.listdir(folder):
        if not (folder / subfolder).is_dir() or not subfolder.isdigit():
            continue
        with open(folder / subfolder / "metadata.jsonl", encoding="utf-8") as file:
            metadata = json.load(file)
        for name in os.listdir(folder / subfolder / "samples"):
            path = folder / subfolder / "samples" / name
            if path.is_file() and re.match(r"\d+\.png", name):
                Image.open(path).load()
                assert metadata["tag"]
                assert metadata["include"]
                found[metadata["prompt"]] = found.get(metadata["prompt"], 0) + 1
    return found


def found_by_compbench(folder: Path) -> list[tuple[int, str]]:
    """Question ids and prompts of a category, in the scorers' order.

    Karine-Huang/T2I-CompBench @ 1b70949: BLIPvqa_eval/BLIP_vqa.py (Create_annotation_for_BLIP) and
    UniDet_eval/dataset/caption_dataset.py, which sorts by what stands behind the first `_`.
    """
    names = os.listdir(folder / "samples")
    names.sort(key=lambda x: int(x.split("_")[-1].split(".")[0]))
    assert names == sorted(names, key=lambda x: int(x.split("_")[1].split(".")[0]))
    return [(int(x.split("_")[-1].split(".")[0]), x.split("_")[0]) for x in names]


def found_by_dpg_bench(folder: Path, resolution: int) -> dict[str, list[Any]]:
    """The four images of each prompt (TencentQQGYLab/ELLA @ 3c228f1, compute_dpg_bench.py)."""
    found = {}
    r = resolution
    crops = [(0, 0, r, r), (r, 0, r * 2, r), (0, r, r, r * 2), (r, r, r * 2, r * 2)]
    for name in os.listdir(folder):
        image = Image.open(folder / name)
        assert image.size == (2 * r, 2 * r)
        found[os.path.basename(name).split(".")[0]] = [image.crop(crop) for crop in crops]
    return found


def found_by_vbench(folder: Path, full_info: list[dict[str, Any]]) -> dict[str, int]:
    """Clips of each prompt (Vchitect/VBench @ 45e79ec, vbench/__init__.py, standard mode)."""
    found: dict[str, int] = {}
    names = os.listdir(folder)
    suffix = Path(names[0]).suffix
    for record in full_info:
        prompt = record["prompt_en"]
        found[prompt] = sum(f"{prompt}-{i}{suffix}" in names for i in range(5))
    return found


def still_clips_of_vbench(folder: Path, prompt: str) -> int:
    """Clips among which static_filter.py looks for still ones (vbench/utils.py).

    It takes a prompt from a name as get_prompt_from_filename does.
    """
    stems = [path.stem for path in folder.glob("*.mp4")]
    return sum(re.sub(r"-\d+$", "", stem) == prompt for stem in stems)
