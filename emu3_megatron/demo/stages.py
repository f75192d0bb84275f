"""The list of the demo's stages, in the order in which a model goes through them.

The model of a stage starts the next:

    stage-1 ─▶ stage-2 ─┬▶ quality ─▶ preferences       draws pictures, as Emu3-Gen
                        └▶ image-to-text ─▶ instruct    answers questions, as Emu3-Chat
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from emu3_megatron.demo import later_sections, posttraining, pretraining, sections
from emu3_megatron.demo.results import Results
from emu3_megatron.demo.sections import Section
from emu3_megatron.demo.work import Work
from emu3_megatron.vision.tokenizer import VisionTokenizer

Choice = Literal["first", "all"]


@dataclass(frozen=True)
class Stage:
    """A stage of a model's life.

    Attributes:
        name: by which its log is called.
        title: over its part of the page.
        does: for the terminal and the page.
        run: does it, by the commands of `emu3`.
        show: what the page shows of it, before and after.
        leaves: files and folders that it makes in the demo's folder.
    """

    name: str
    title: str
    does: str
    run: Callable[[Work], None]
    show: Callable[[Results, VisionTokenizer], Section]
    leaves: tuple[str, ...]


FIRST = (
    Stage(
        "material",
        "Photos and a clip",
        "Ten photos and two seconds of a film, each with a caption, are laid out as files.",
        pretraining.material,
        sections.material,
        ("photos", "clips"),
    ),
    Stage(
        "tokenizer",
        "Vision tokenizer",
        "A small vision tokenizer learns to write a picture as a grid of codes.",
        pretraining.tokenizer,
        sections.vision_tokenizer,
        ("tokenizer-run",),
    ),
    Stage(
        "prepare",
        "Documents, shards, packs",
        "Photos, clip and captions become documents of tokens, packed into sequences.",
        pretraining.prepare,
        sections.prepare,
        ("data",),
    ),
    Stage(
        "stage-1",
        "Pre-training, stage 1",
        "A small decoder learns the ten photos by heart: two processes share its layers (tensor "
        "parallel), are stopped halfway and resume.",
        pretraining.stage_1,
        sections.stage_1,
        ("decoder-run", "recipe.yaml"),
    ),
)
LATER = (
    Stage(
        "stage-2",
        "Pre-training, stage 2",
        "Sequences three times as long, with many views of each photo, pale ones and colourful "
        "ones, and four seconds of film: two processes share each sequence (context parallel).",
        pretraining.stage_2,
        later_sections.stage_2,
        ("views", "views-held-out", "film", "texts", "data-views", "data-held-out", "stage2-run"),
    ),
    Stage(
        "quality",
        "Quality fine-tuning",
        "Of 240 further views the fifth with the most colour is selected by its score; their codes "
        "alone are trained.",
        posttraining.quality,
        later_sections.quality,
        ("pool", "data-quality", "data-quality-held-out", "quality-run"),
    ),
    Stage(
        "preferences",
        "Preferences (DPO)",
        "The model draws each caption several times; a rule, in the place of people, prefers the "
        "picture with the most colour; best and worst make pairs, on which DPO trains.",
        posttraining.preferences,
        later_sections.preferences,
        (
            "prompts.jsonl",
            *("samples", "pairs.*"),
            *("reference", "preferences-run"),
        ),
    ),
    Stage(
        "image-to-text",
        "Image to text",
        "From stage 2 the other way: captions behind their pictures, mixed with text, and no loss "
        "on codes.",
        posttraining.image_to_text,
        later_sections.image_to_text,
        ("image-to-text-run",),
    ),
    Stage(
        "instruct",
        "Instruction tuning",
        "Questions about the views and their answers, in one turn or two; answers alone are "
        "trained.",
        posttraining.instruct,
        later_sections.instruct,
        (
            "views.json",
            "views-held-out.json",
            "data-dialogues",
            "data-dialogues-held-out",
            "instruct-run",
        ),
    ),
    Stage(
        "export",
        "Export",
        "The tuned model becomes a folder that transformers loads, and is read back from it.",
        posttraining.export,
        later_sections.export,
        ("transformers", "imported"),
    ),
    Stage(
        "generate",
        "Generation",
        "One model draws a caption, the other answers a question about a view that is new to it.",
        posttraining.generate,
        later_sections.generate,
        (posttraining.PICTURE, posttraining.ANSWER),
    ),
)


def stages_of(choice: Choice) -> tuple[Stage, ...]:
    return FIRST if choice == "first" else FIRST + LATER
