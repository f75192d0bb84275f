"""Measures what quality fine-tuning did, beside its control, and shows pictures before and after.

    python examples/quality/report.py runs/quality --seeds 1 [2 ...] [--json FILE] [--picture FILE]

Reads what examples/shapes/run.sh and examples/quality/tiny.sh left. Writes report.html and
pictures.png into the folder. Held-out code NLL is the mean over all codes of all held-out pictures
of the chosen style, in nats, each picture alone with its caption.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "examples" / "shapes")]

from harness import describe_machine  # noqa: E402
from shapes import SEEN, SIDE, UNSEEN, vividness  # noqa: E402

from emu3_megatron import pages, parallel  # noqa: E402
from emu3_megatron.data.shards.store import TokenStore  # noqa: E402
from emu3_megatron.generation.images import VisionPrompt, draw  # noqa: E402
from emu3_megatron.generation.sampling import SamplingSettings  # noqa: E402
from emu3_megatron.grammar import Meta  # noqa: E402
from emu3_megatron.media.images import to_image  # noqa: E402
from emu3_megatron.model import Decoder, Inputs, SequenceLayout  # noqa: E402
from emu3_megatron.model.opening import open_decoder  # noqa: E402
from emu3_megatron.parallel import Mesh  # noqa: E402
from emu3_megatron.prepare.pipeline import manifest_vocabulary, read_manifest  # noqa: E402
from emu3_megatron.vision.tokenizer import VisionTokenizer  # noqa: E402
from emu3_megatron.vocabulary import CLASS_NAMES  # noqa: E402

SHAPES = Path("runs/shapes")
SETTINGS = SamplingSettings(guidance=1.0)  # what the weights hold, nothing sharpened
PROMPTS = [SEEN[0], SEEN[14], SEEN[23], SEEN[31], *UNSEEN[::2]]
EACH = 3  # pictures of a prompt in the report
SCORED = 8  # pictures of a prompt whose vividness is measured
NAMES = {
    "base": "before",
    "tuned": "tuned on the best tenth",
    "control": "tuned on as many, by lot",
}


class Model:
    """A decoder of the experiment, its held-out NLL, and pictures of every prompt."""

    def __init__(self, run: Path, held_out: TokenStore, tokenizer: VisionTokenizer, mesh: Mesh):
        decoder, _ = open_decoder(run, mesh)
        self.nll = code_nll(decoder, held_out)
        vocabulary = held_out.vocabulary
        prompts = [VisionPrompt(s.caption, Meta(8, 8)) for s in PROMPTS for _ in range(SCORED)]
        codes = draw(decoder, vocabulary, prompts, SETTINGS)
        drawn = [to_image(tokenizer.decode_images(torch.from_numpy(c))[0]) for c in codes]
        self.vividness = [vividness(picture) for picture in drawn]
        self.pictures = [drawn[i : i + EACH] for i in range(0, len(drawn), SCORED)]


def code_nll(decoder: Decoder, documents: TokenStore) -> float:
    """Mean negative log-likelihood of the codes of all documents."""
    code = CLASS_NAMES.index("code")
    found = []
    for number in range(len(documents)):
        tokens_s = torch.from_numpy(documents.read(number).astype(np.int64))
        is_code_s = documents.vocabulary.token_class(tokens_s[1:].numpy()) == code
        length = len(tokens_s) - 1
        inputs = Inputs(
            tokens_s[None, :-1],
            torch.arange(length)[None],
            SequenceLayout.of_documents([[0, length]]),
            labels_bs=tokens_s[None, 1:],
        )
        with torch.no_grad():
            log_prob_bs = decoder(inputs, "log_probabilities").log_prob
        found.append(log_prob_bs[0][torch.from_numpy(is_code_s)].double())
    return -float(torch.cat(found).mean())


def measure(out: Path, seeds: Sequence[int]) -> tuple[list[dict[str, Any]], dict[str, Model]]:
    """A row for each seed, and the models of the first."""
    manifest = read_manifest(out / "held-out")
    assert manifest is not None, f"{out}/held-out: run examples/quality/tiny.sh first"
    (shard,) = manifest["kinds"]["images"]["shards"]
    held_out = TokenStore(
        out / "held-out" / "shards" / shard["name"], manifest_vocabulary(manifest)
    )
    tokenizer = VisionTokenizer.load(SHAPES / "tokenizer" / "tokenizer")
    mesh = parallel.start()
    mesh.seed(0, 0)
    open_model = lambda run: Model(run, held_out, tokenizer, mesh)
    base = open_model(SHAPES / "decoder")
    rows, shown = [], {}
    for seed in seeds:
        models = {name: open_model(out / f"{name}-{seed}") for name in ("tuned", "control")}
        models = {"base": base, **models}
        shown = shown or models
        rows.append({"case": "tiny-cpu", "seed": seed, **_figures(models)})
    parallel.stop()
    return rows, shown


def _figures(models: dict[str, Model]) -> dict[str, float]:
    figures: dict[str, float] = {}
    for name, model in models.items():
        figures[f"{name}_nll"] = model.nll
        figures[f"{name}_vividness"] = statistics.mean(model.vividness)
        figures[f"{name}_vividness_sd"] = statistics.stdev(model.vividness)
    before = models["base"].nll
    for name in ("tuned", "control"):
        figures[f"{name}_fall_percent"] = 100 * (before - models[name].nll) / before
    figures["fall_beyond_control"] = figures["tuned_fall_percent"] - figures["control_fall_percent"]
    return figures


def summary_of(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Median, least and greatest of each figure over the seeds."""
    names = [name for name in rows[0] if name not in ("case", "seed")]
    columns = {name: [row[name] for row in rows] for name in names}
    return {
        name: {"median": statistics.median(of), "min": min(of), "max": max(of)}
        for name, of in columns.items()
    }


def sheet(models: dict[str, Model]) -> Image.Image:
    """Pictures of every prompt, the models side by side, drawn from the same seeds."""
    gap, top, left = 4, 20, 190
    cell = SIDE + gap
    width = left + len(models) * (EACH * cell + 3 * gap)
    image = Image.new("RGB", (width, top + len(PROMPTS) * cell), "white")
    pen = ImageDraw.Draw(image)
    pen.font = ImageFont.load_default(12)
    for line, subject in enumerate(PROMPTS):
        y = top + line * cell
        unseen = "\n(in no training picture)" if subject.is_unseen else ""
        pen.text((4, y + 20), subject.caption + unseen, fill="black")
        for column, (name, model) in enumerate(models.items()):
            x = left + column * (EACH * cell + 3 * gap)
            if line == 0:
                pen.text((x, 4), NAMES[name], fill="black")
            for i, picture in enumerate(model.pictures[line]):
                image.paste(picture, (x + i * cell, y))
    return image


def page(rows: Sequence[dict[str, Any]], picture: Image.Image) -> str:
    heads = ["seed", "before", "tuned", "control", "tuned: fall", "control: fall", "difference"]
    cells = [
        [
            row["seed"],
            *(f"{row[f'{name}_nll']:.3f}" for name in NAMES),
            f"{row['tuned_fall_percent']:.1f} %",
            f"{row['control_fall_percent']:.1f} %",
            f"{row['fall_beyond_control']:.1f} points",
        ]
        for row in rows
    ]
    vivid = [
        [
            NAMES[name],
            f"{rows[0][f'{name}_vividness']:.2f}",
            f"{rows[0][f'{name}_vividness_sd']:.2f}",
        ]
        for name in NAMES
    ]
    blocks = [
        pages.paragraph("Held-out code NLL of the chosen style, nats."),
        pages.table(heads, cells),
        pages.paragraph(f"Vividness, 0 to 10, of {SCORED} pictures of each of the prompts."),
        pages.table(["model", "mean", "standard deviation"], vivid),
        pages.image(picture),
    ]
    return pages.page("Quality fine-tuning, small", blocks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--json", type=Path, help="write machine, versions, rows to this file")
    parser.add_argument("--picture", type=Path, help="write the pictures to this PNG too")
    parsed = parser.parse_args()
    about = describe_machine()  # before this leaves files in the checkout
    rows, models = measure(parsed.out, parsed.seeds)
    picture = sheet(models)
    for path in filter(None, [parsed.out / "pictures.png", parsed.picture]):
        picture.save(path)
    (parsed.out / "report.html").write_text(page(rows, picture), encoding="utf-8")
    result = {**about, "rows": rows, "summary": summary_of(rows)}
    if parsed.json:
        parsed.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    for row in rows:
        print(
            f"seed {row['seed']}: held-out code NLL {row['base_nll']:.3f} before, "
            f"{row['tuned_nll']:.3f} tuned, {row['control_nll']:.3f} control: the fall is "
            f"{row['fall_beyond_control']:.1f} points beyond the control's"
        )
    print(f"open {parsed.out / 'report.html'}")


if __name__ == "__main__":
    main()
