"""Writes the demo's page: what each stage did, before and after it, by which commands."""

from collections.abc import Sequence

from emu3_megatron import pages
from emu3_megatron.demo.later_sections import evaluation
from emu3_megatron.demo.results import Results
from emu3_megatron.demo.sections import Section
from emu3_megatron.demo.stages import Stage
from emu3_megatron.files import replacing
from emu3_megatron.vision.tokenizer import VisionTokenizer

_LEAD = (
    "Stages of a model's life on ten photos and a clip, on a CPU, by the commands that a user "
    "types. It shows that the parts fit together and what each stage changes; a model of two "
    "layers and ten photos says nothing about what large ones can do."
)
_EVALUATION = (
    "Each model on documents that none was trained on. A stage that trains one kind alone may make "
    "the others worse."
)


def write_report(stages: Sequence[Stage], results: Results, tokenizer: VisionTokenizer) -> None:
    """Write `report.html`, one file that needs nothing beside it."""
    sections = [stage.show(results, tokenizer) for stage in stages]
    blocks = [pages.paragraph(_LEAD), _overview(stages, sections, results)]
    for number, (stage, section) in enumerate(zip(stages, sections, strict=True), 1):
        blocks += _section(number, stage, section, results)
    if results.later:
        blocks += [pages.heading("Evaluation"), pages.paragraph(_EVALUATION)]
        blocks.append(evaluation(results.later))
    with replacing(results.out / "report.html") as beside:
        beside.write_text(pages.page("emu3-megatron: the demo", blocks), encoding="utf-8")


def _overview(stages: Sequence[Stage], sections: Sequence[Section], results: Results) -> pages.Html:
    rows = [
        [stage.title, section.measure, section.before, section.after, _time(stage, results)]
        for stage, section in zip(stages, sections, strict=True)
    ]
    return pages.table(["stage", "measure", "before", "after", "time"], rows)


def _time(stage: Stage, results: Results) -> str:
    return f"{results.seconds[stage.name]:,.0f} s"


def _section(number: int, stage: Stage, section: Section, results: Results) -> list[pages.Html]:
    commands = results.commands[stage.name]
    change = " → ".join(filter(None, [section.before, section.after]))
    return [
        pages.heading(f"{number}. {stage.title}"),
        pages.paragraph(stage.does),
        pages.paragraph(f"{section.measure}: {change}; {_time(stage, results)}."),
        *([pages.code("\n".join(f"$ {command}" for command in commands))] if commands else []),
        *section.blocks,
    ]
