"""The parts of the demo's page on its later stages: before and after each of them."""

import json
from collections.abc import Sequence

import numpy as np
from PIL import Image

from emu3_megatron import pages
from emu3_megatron.demo.material import PHOTOS
from emu3_megatron.demo.posttraining import ANSWER, DRAWN, PICTURE, SHOWN
from emu3_megatron.demo.results import ANSWERERS, DESCRIBERS, MODELS, PAINTERS, Later, Results
from emu3_megatron.demo.sections import (
    Section,
    animation,
    as_image,
    curve,
    equal,
    read_metrics,
)
from emu3_megatron.demo.views import WHAT
from emu3_megatron.grammar import Vision
from emu3_megatron.media.images import load_image
from emu3_megatron.vision.tokenizer import VisionTokenizer

HELD_OUT = "validation/"
_CAPTIONS = (0, 1, 8, 9)  # whose pictures are shown
NOTHING = "(nothing)"
_GAP = 4  # pixels between pictures
_ROWS = 10  # views and questions that are shown


def stage_2(results: Results, tokenizer: VisionTokenizer) -> Section:
    later = _later(results)
    rows = read_metrics(results.out / MODELS["stage-2"])
    before, after = _losses(later, "codes of views", "stage-1", "stage-2")
    note = (
        "Before, the model knows ten photos in one shape and one colouring; now it draws their "
        "middles, pale or colourful by lot. The views that the loss is of differ from those it was "
        "trained on in how pale or colourful they are, not in what they show."
    )
    return Section(
        "loss of codes, nats, on views that it has not seen",
        before,
        after,
        [
            pages.paragraph(note),
            _curves(rows, {"loss": "loss", f"{HELD_OUT}nll_code": "codes of held-out views, nats"}),
            pages.heading("The same captions and seeds, before and after", 3),
            drawn(later, "stage-1", "stage-2"),
            pages.heading("Four seconds of film from their first half, greedy", 3),
            _film(later, tokenizer),
        ],
    )


def _later(results: Results) -> Later:
    assert results.later is not None, "measured, where these stages ran"
    return results.later


def _losses(later: Later, what: str, before: str, after: str) -> tuple[str, str]:
    return f"{later.losses[before][what]:.2f}", f"{later.losses[after][what]:.2f}"


def _curves(rows: Sequence[dict], shown: dict[str, str]) -> pages.Html:
    return pages.side_by_side([curve(title, rows, name) for name, title in shown.items()])


def drawn(later: Later, *models: str) -> pages.Html:
    """Pictures of some captions, those of a model beside those of the next."""
    cards = [
        pages.card(
            [pages.image(_sheet(later.drawn[model][number]), "JPEG")],
            [model, PHOTOS[number].caption],
        )
        for number in _CAPTIONS
        for model in models
    ]
    return pages.side_by_side(cards)


def _sheet(pictures: Sequence[Image.Image]) -> Image.Image:
    """The first four pictures, two by two."""
    width, height = pictures[0].width + _GAP, pictures[0].height + _GAP
    sheet = Image.new("RGB", (2 * width - _GAP, 2 * height - _GAP), "white")
    for i, picture in enumerate(pictures[:4]):
        sheet.paste(picture, (i % 2 * width, i // 2 * height))
    return sheet


def _film(later: Later, tokenizer: VisionTokenizer) -> pages.Html:
    meta = later.film.vision.meta
    given = meta.frames // 2
    cells, heads = [animation(tokenizer, later.film.vision)], ["tokenizer"]
    for model, codes in later.continued.items():
        share = equal(codes[given:], later.film.vision.codes[given:])
        heads.append(f"{model}: {share:.1%} of codes equal in the second half")
        cells.append(animation(tokenizer, Vision(meta, codes)))
    return pages.table(heads, [cells])


def quality(results: Results, tokenizer: VisionTokenizer) -> Section:
    later = _later(results)
    rows = read_metrics(results.out / MODELS["quality"])
    kinds = ("codes of the most colourful", "codes of views")
    losses = [[kind, *_losses(later, kind, "stage-2", "quality")] for kind in kinds]
    note = (
        "Colour stands in the place of a model that scores quality. Pictures get more colour, and "
        "held-out views that the same rule selects get likelier, beside all held-out views."
    )
    return Section(
        "mean colour of pictures drawn (0 is grey)",
        *_colours(later, "stage-2", "quality"),
        [
            pages.paragraph(note),
            _curves(rows, {"loss": "loss", f"{HELD_OUT}loss": "held-out, selected by the rule"}),
            pages.table(["held-out loss, nats", "before", "after"], losses),
            pages.heading("The same captions and seeds, before and after", 3),
            drawn(later, "stage-2", "quality"),
        ],
    )


def _colours(later: Later, before: str, after: str) -> tuple[str, str]:
    return f"{np.mean(later.colour[before]):.1f}", f"{np.mean(later.colour[after]):.1f}"


def preferences(results: Results, tokenizer: VisionTokenizer) -> Section:
    later = _later(results)
    rows = read_metrics(results.out / MODELS["preferences"])
    pictures = np.size(later.colour["preferences"])
    colours = _colours(later, "quality", "preferences")
    note = (
        f"Of pictures from the same captions and other seeds than those of the pairs the rule "
        f"prefers the later model's in {later.preferred():.0%} of {pictures}; without effect it "
        f"would be 50%. Their mean colour goes from {colours[0]} to {colours[1]}. DPO learns what "
        "the rule asks for and nothing else: nothing is drawn better than before."
    )
    shown = {
        "rewards/accuracies": "pairs told apart, share",
        "rewards/margins": "margin of the rewards",
        "preference_loss": "preference loss",
    }
    return Section(
        "pictures that the rule prefers to those before",
        "50% without effect",
        f"{later.preferred():.0%}",
        [
            pages.paragraph(note),
            _curves(rows, shown),
            pages.heading("The same captions and seeds, before and after", 3),
            drawn(later, "quality", "preferences"),
        ],
    )


def image_to_text(results: Results, tokenizer: VisionTokenizer) -> Section:
    later = _later(results)
    before, after = DESCRIBERS
    rows = read_metrics(results.out / MODELS[after])
    table = [
        [pages.image(as_image(tokenizer, view.vision.codes)), *(text or NOTHING for text in said)]
        for view, *said in _some(later.views, later.captions[before], later.captions[after])
    ]
    note = (
        "Captions of views that no model was trained on; their photos in other colours it knows. "
        "So this shows recognition of ten photos, no more."
    )
    return Section(
        "captions exact, of held-out views",
        f"{later.exact_captions(before)} of {len(later.views)}",
        f"{later.exact_captions(after)} of {len(later.views)}",
        [
            pages.paragraph(note),
            _curves(rows, {"loss": "loss", f"{HELD_OUT}loss": "captions of held-out views, nats"}),
            pages.table(["view, as codes", "caption before", "caption after"], table),
        ],
    )


def _some(*columns: Sequence) -> list[tuple]:
    """Some rows, evenly over all."""
    rows = list(zip(*columns, strict=True))
    return rows[:: max(1, len(rows) // _ROWS)][:_ROWS]


def instruct(results: Results, tokenizer: VisionTokenizer) -> Section:
    later = _later(results)
    before, after = ANSWERERS[:2]
    rows = read_metrics(results.out / MODELS[after])
    table = [
        [
            pages.image(as_image(tokenizer, asked.picture[None])),
            asked.question,
            *(text or NOTHING for text in said),
        ]
        for asked, *said in _some(later.asked, later.answers[before], later.answers[after])
    ]
    note = (
        "Questions about views that no model was trained on. Before, the model knows no dialogues; "
        "now it answers. There are two questions and twenty answers: it has learned the form of a "
        "dialogue and to tell ten photos apart, not to reason."
    )
    return Section(
        "answers exact, about held-out views",
        f"{later.exact_answers(before)} of {len(later.asked)}",
        f"{later.exact_answers(after)} of {len(later.asked)}",
        [
            pages.paragraph(note),
            _curves(rows, {"loss": "loss", f"{HELD_OUT}loss": "held-out answers, nats"}),
            pages.table(["view, as codes", "question", "answer before", "answer after"], table),
        ],
    )


def export(results: Results, tokenizer: VisionTokenizer) -> Section:
    later = _later(results)
    folder = results.out / "transformers"
    files = [
        [path.relative_to(folder).as_posix(), f"{path.stat().st_size:,}"]
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    ]
    pairs = zip(later.answers["instruct"], later.answers["read-back"], strict=True)
    same = sum(a == b for a, b in pairs)
    return Section(
        "answers of the model that is read back, equal",
        "",
        f"{same} of {len(later.asked)}",
        [
            pages.paragraph("The folder opens with transformers' own Emu3 classes."),
            pages.table(["file", "bytes"], files),
        ],
    )


def generate(results: Results, tokenizer: VisionTokenizer) -> Section:
    answer = json.loads((results.out / ANSWER).read_text(encoding="utf-8"))["answer"]
    cards = [
        pages.card([pages.image(load_image(results.out / PICTURE))], [f"drawn: {DRAWN.caption}"]),
        pages.card([pages.image(load_image(results.out / SHOWN))], [WHAT, f"answered: {answer}"]),
    ]
    return Section(
        "answer to a question about a view",
        "",
        answer,
        [
            pages.side_by_side(cards),
            pages.heading("The same captions and seeds, stage after stage", 3),
            drawn(_later(results), *PAINTERS),
        ],
    )


def evaluation(later: Later) -> pages.Html:
    """Held-out losses by stage."""
    kinds = next(iter(later.losses.values()))
    rows = [[kind, *(f"{losses[kind]:.2f}" for losses in later.losses.values())] for kind in kinds]
    return pages.table(["held-out loss, nats", *later.losses], rows)
