"""Runs the data pipelines of a prepare recipe; what is there already is not made again."""

import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from emu3_megatron.config.model import preset_vocabulary
from emu3_megatron.config.prepare import Kind, PrepareRecipe, TextConfig
from emu3_megatron.errors import InputError
from emu3_megatron.files import write_json
from emu3_megatron.media.files import READER_VERSION, line_of_left_out
from emu3_megatron.prepare.captions.captioning import (
    ask_for_captions,
    captions_of_files,
    refuse_unusable,
)
from emu3_megatron.prepare.captions.files import Captions
from emu3_megatron.prepare.captions.filtering import filter_captions
from emu3_megatron.prepare.clip_codes import encode_videos, pictures_of
from emu3_megatron.prepare.clips import WriteClips, decide_clips, score_clips
from emu3_megatron.prepare.codes import refuse_other_codes
from emu3_megatron.prepare.dialogues.preparing import prepare_dialogues
from emu3_megatron.prepare.executors import MakeWorker, line_of
from emu3_megatron.prepare.features import prepare_features
from emu3_megatron.prepare.images import (
    EncodeImages,
    caption_images,
    decide_images,
    encode_tasks,
    item_name,
    score_images,
)
from emu3_megatron.prepare.near_texts import SIGNED, sift_texts
from emu3_megatron.prepare.packing import pack_held_out, pack_prepared
from emu3_megatron.prepare.parts import Skipped
from emu3_megatron.prepare.reporting import write_report
from emu3_megatron.prepare.scores.language import refuse_unknown
from emu3_megatron.prepare.selecting import select_best
from emu3_megatron.prepare.sharding import (
    Made,
    describe_shards,
    line_of_skipped,
    make_shards,
    refuse_nothing,
    set_aside,
)
from emu3_megatron.prepare.stores.opening import open_sources
from emu3_megatron.prepare.stores.uploading import upload
from emu3_megatron.prepare.tables import Row, write_table
from emu3_megatron.prepare.text import tokenise
from emu3_megatron.prepare.text_files import refuse_missing_column
from emu3_megatron.prepare.text_filters import line_of_masked, write_text_scores
from emu3_megatron.prepare.text_scores import ScoreText
from emu3_megatron.prepare.text_tasks import TextTask, text_tasks
from emu3_megatron.prepare.workspace import (
    FORMAT,
    MANIFEST,
    Workspace,
    digest,
    folder_of,
    only_run,
    read_manifest,
)
from emu3_megatron.vision.coding import tokenizer_hash
from emu3_megatron.vision.tokenizer import read_network
from emu3_megatron.vocabulary import Vocabulary

_CLIPS_A_TASK = 4  # a clip is a hundred times an image


def prepare(recipe: PrepareRecipe, kinds: Sequence[Kind]) -> dict[str, Any]:
    """Prepare some kinds of a recipe's data, then its packs.

    The same command goes on after a kill, does nothing when all is done, and makes the same bytes
    either way.

    Returns:
        The manifest.

    Raises:
        InputError: nothing usable; or with `strict` something that is not; or what a task could not
            do. What was finished stays.
    """
    _refuse_unready(recipe, kinds)
    try:
        with only_run(recipe.out):
            return _prepare(recipe, kinds)
    except OSError as error:
        raise InputError(line_of(error)) from None


def _refuse_unready(recipe: PrepareRecipe, kinds: Sequence[Kind]) -> None:
    """Raises InputError when something is missing that every item needs."""
    for kind in kinds:
        if getattr(recipe, kind) is None:
            raise InputError(f"the recipe has no section {kind}")
    for kind, config in (("images", recipe.images), ("clips", recipe.clips)):
        if config is not None and kind in kinds:
            Captions(config.captions, Path())  # its manifest is read, or said to be missing
            if languages := config.captions.languages:
                refuse_unknown(languages, f"{kind}.captions.languages")
    if recipe.text is not None and "text" in kinds and recipe.text.languages:
        refuse_unknown(recipe.text.languages, "text.languages")
    vocabulary = recipe.vocabulary()
    vocabulary.encoding.check()
    if {"images", "clips"} & set(kinds) and recipe.tokenizer is None:
        raise InputError("tokenizer: name the folder of the vision tokenizer")
    if recipe.tokenizer is not None and {"images", "clips", "dialogues"} & set(kinds):
        refuse_other_codes(read_network(recipe.tokenizer / "config.json"), vocabulary)


def _prepare(recipe: PrepareRecipe, kinds: Sequence[Kind]) -> dict[str, Any]:
    workspace = Workspace(recipe)
    workspace.progress.begin(kinds)
    try:
        workspace = open_sources(workspace, kinds)
        if workspace.recipe.text is not None and "text" in kinds:
            refuse_missing_column(workspace.recipe.text)
        manifest = _make(workspace, kinds)
        workspace.progress.end()
    except BaseException:
        with suppress(Exception):  # what ended the run is what the user wants to read
            write_report(recipe.out)
        raise
    write_report(recipe.out)
    if recipe.upload is not None:
        upload(recipe.out, recipe.upload)
    return manifest


def _make(workspace: Workspace, kinds: Sequence[Kind]) -> dict[str, Any]:
    recipe = workspace.recipe
    manifest = read_manifest(recipe.out) or {"format": FORMAT, "kinds": {}, "packs": []}
    manifest = {**manifest, "model": recipe.model, "codes": recipe.codes}
    for kind in kinds:
        entry = _PIPELINES[kind](workspace)
        manifest["kinds"][kind] = {**entry, "left_out": workspace.left_out.get(kind, {})}
        write_json(recipe.out / MANIFEST, manifest)
    manifest["packs"] = pack_prepared(recipe.out, recipe.packs, manifest, recipe.vocabulary())
    manifest["held_out_packs"] = pack_held_out(
        recipe.out, recipe.packs, manifest, recipe.vocabulary()
    )
    write_json(recipe.out / MANIFEST, manifest)
    if not any("held_out" in entry for entry in manifest["kinds"].values()):
        shutil.rmtree(workspace.held_out.out, ignore_errors=True)  # of an earlier recipe
    return manifest


def manifest_vocabulary(manifest: dict[str, Any]) -> Vocabulary:
    """The vocabulary that prepared data was made with."""
    return preset_vocabulary(manifest["model"], manifest["codes"])


def _images(workspace: Workspace) -> dict[str, Any]:
    recipe, config = workspace.recipe, workspace.recipe.images
    assert config is not None
    rows = score_images(workspace, config)
    decide_images(rows, config, recipe.holdout)
    selected = select_best("images", rows, config.select) if config.select else None
    caption_images(workspace, config, rows)
    settings = {
        **_code_settings(workspace),
        "area": config.area,
        "understanding": config.understanding,
    }
    vocabulary = recipe.vocabulary()
    assert recipe.tokenizer is not None, "refused at the beginning"
    make = partial(EncodeImages, config, recipe.tokenizer, vocabulary, recipe.run.device)
    write = _Writing(make, settings, recipe.run.task_items, on_device=True)
    return _write(workspace, "images", rows, selected, write)


def _clips(workspace: Workspace) -> dict[str, Any]:
    recipe, config = workspace.recipe, workspace.recipe.clips
    assert config is not None
    rows = score_clips(workspace, config)
    decide_clips(rows, config, workspace.recipe.holdout)
    selected = select_best("clips", rows, config.select) if config.select else None
    captions_of_files(rows, config.captions, folder_of(config))
    filter_captions(workspace, "clips", rows, config.captions)
    settings = {
        **_code_settings(workspace),
        "area": config.area,
        "max_tokens": config.max_tokens,
    }
    encode_videos(workspace, config, rows, digest(settings))
    if endpoint := config.captions.endpoint:
        ask_for_captions(workspace, "clips", rows, endpoint, pictures_of)
        filter_captions(workspace, "clips", rows, config.captions)
    make = partial(WriteClips, recipe.vocabulary())
    write = _Writing(make, settings, _CLIPS_A_TASK, on_device=False)
    return _write(workspace, "clips", rows, selected, write)


def _code_settings(workspace: Workspace) -> dict[str, Any]:
    """What decides codes, besides the pixels and the size they are read at."""
    recipe = workspace.recipe
    assert recipe.tokenizer is not None, "refused at the beginning"
    return {
        "vocabulary": recipe.vocabulary().fingerprint(),
        "tokenizer": tokenizer_hash(recipe.tokenizer),
        "reader": READER_VERSION,
    }


@dataclass(frozen=True)
class _Writing:
    """How rows become documents.

    Attributes:
        settings: what decides the tokens, besides the rows.
        items: rows a task.
    """

    make: MakeWorker
    settings: dict[str, Any]
    items: int
    on_device: bool


def _write(
    workspace: Workspace,
    kind: str,
    rows: Sequence[Row],
    selected: dict[str, Any] | None,
    write: _Writing,
) -> dict[str, Any]:
    """The table, then shards of what is kept."""
    recipe = workspace.recipe
    # The table first: it says why, also when the run stops here.
    write_table(workspace.table(kind), kind, rows, selected["columns"] if selected else ())
    refuse_unusable(rows, recipe.strict)
    refuse_nothing(kind, rows)

    def shards_of(workspace: Workspace, some: Sequence[Row]) -> Made:
        return make_shards(
            workspace,
            kind,
            write.settings,
            encode_tasks(workspace, kind, some, digest(write.settings), write.items),
            write.make,
            recipe.vocabulary(),
            "item",
            on_device=write.on_device,
            may_be_empty=workspace.is_held_out,
        )

    made = shards_of(workspace, [row for row in rows if not row.get("held_out")])
    held = None
    if recipe.holdout is not None:
        held = shards_of(workspace.held_out, [row for row in rows if row.get("held_out")])
    if skipped := [*made.skipped, *(held.skipped if held else ())]:
        _set_skipped_aside(rows, skipped)
        write_table(workspace.table(kind), kind, rows, selected["columns"] if selected else ())
    return {
        "settings": write.settings,
        "found": len(rows),
        "kept": sum(bool(row["kept"]) for row in rows),
        "set_aside": set_aside(rows),
        **({"selected": selected} if selected else {}),
        "shards": describe_shards(workspace, made),
        **_held_out(workspace, held, sum(bool(r["kept"] and r.get("held_out")) for r in rows)),
    }


def _held_out(workspace: Workspace, held: Made | None, kept: int) -> dict[str, Any]:
    """What the manifest says of what is held out, where the recipe holds out anything."""
    if workspace.recipe.holdout is None or held is None:
        return {}
    return {"held_out": {"kept": kept, "shards": describe_shards(workspace.held_out, held)}}


def _set_skipped_aside(rows: Sequence[Row], skipped: Sequence[Skipped]) -> None:
    """What could be scored and not encoded."""
    reasons = dict(skipped)
    for row in rows:
        if row["kept"] and (reason := reasons.get(item_name(row))):
            row["kept"], row["reason"] = False, f"unreadable: {reason}"


def _text(workspace: Workspace) -> dict[str, Any]:
    recipe, config = workspace.recipe, workspace.recipe.text
    assert config is not None
    vocabulary = recipe.vocabulary()
    settings = {"vocabulary": vocabulary.fingerprint()}
    near, holdout = config.near_duplicates, recipe.holdout
    signed = near is not None or holdout is not None
    tasks = text_tasks(workspace, config, digest(settings, SIGNED) if signed else digest(settings))
    filtered = _score_text(workspace, config, tasks)
    signatures = workspace.work("text", "near") / ".signatures.tmp"
    made = make_shards(
        workspace,
        "text",
        settings,
        tasks,
        tokenise(config, vocabulary, recipe.strict, signed),
        vocabulary,
        "B",
        on_device=False,
        sift=partial(sift_texts, near, holdout, signatures) if signed else None,
        sifting=[near, holdout] if signed else [],
    )
    held = made.held_out.documents if made.held_out else 0
    rows = [{"reason": line_of_skipped(skipped)} for skipped in (*made.skipped, *made.near)]
    write_table(workspace.table("text"), "text", rows)
    aside = {
        "duplicate": made.duplicates,
        "unreadable": len(made.skipped),
        **filtered.pop("left_out", {}),
    }
    return {
        "settings": settings,
        "found": made.documents + held + sum(aside.values()) + len(made.near),
        "kept": made.documents + held,
        "set_aside": aside | ({} if near is None else {"near duplicate": len(made.near)}),
        "origins": made.origins,
        **filtered,
        "shards": describe_shards(workspace, made),
        **_held_out(workspace, made.held_out, held),
    }


def _score_text(
    workspace: Workspace, config: TextConfig, tasks: Sequence[TextTask]
) -> dict[str, Any]:
    """Where filters are on: the table of scores, what they leave out, and what is masked."""
    scores = [task.scores for task in tasks if task.scores is not None]
    path = workspace.table("text-scores")
    if not scores:
        path.unlink(missing_ok=True)  # of an earlier recipe
        return {}
    scoring = [replace(task, out=out) for task, out in zip(tasks, scores, strict=True)]
    workspace.run(partial(ScoreText, config), scoring, "text: scores/B")
    left_out, masked = write_text_scores(path, scores, config)
    return {"left_out": dict(left_out), **({"masked": dict(masked)} if masked else {})}


def _dialogues(workspace: Workspace) -> dict[str, Any]:
    assert workspace.recipe.dialogues is not None
    return prepare_dialogues(workspace, workspace.recipe.dialogues)


def _features(workspace: Workspace) -> dict[str, Any]:
    assert workspace.recipe.features is not None
    return prepare_features(workspace, workspace.recipe.features)


_PIPELINES: dict[str, Callable[[Workspace], dict[str, Any]]] = {
    "images": _images,
    "clips": _clips,
    "text": _text,
    "dialogues": _dialogues,
    "features": _features,
}


def summary(manifest: dict[str, Any]) -> list[str]:
    """Lines on what became of everything."""
    lines = []
    for kind, entry in manifest["kinds"].items():
        tokens = sum(shard["tokens"] for shard in entry["shards"])
        aside = ", ".join(
            f"{number:,} {why}" for why, number in entry["set_aside"].items() if number
        )
        lines.append(
            f"{kind}: {entry['kept']:,} of {entry['found']:,} kept, {tokens:,} tokens in "
            f"{len(entry['shards'])} shards"
            + (f"; {entry['held_out']['kept']:,} held out" if "held_out" in entry else "")
            + (f"; set aside: {aside}" if aside else "")
        )
        if left_out := line_of_left_out(entry.get("left_out", {})):
            lines.append(f"{kind}: files left out by their suffix: {left_out}")
        if masked := line_of_masked(entry.get("masked", {})):
            lines.append(f"{kind}: masked: {masked}")
    lines += [
        f"{pack['path']}: {pack['packs']:,} packs, {pack['fill']:.2%} full"
        for pack in (*manifest["packs"], *manifest.get("held_out_packs", ()))
    ]
    return lines
