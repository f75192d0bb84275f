"""The demo's stages up to the pre-trained model: photos, tokenizer, packs, stages 1 and 2."""

from pathlib import Path

import yaml

from emu3_megatron.config import Recipe, load_recipe
from emu3_megatron.config.load import find_recipe
from emu3_megatron.demo.documents import Trained, trained
from emu3_megatron.demo.material import lay_out, lay_out_clip
from emu3_megatron.demo.views import HELD_OUT, VIEWS, lay_out_texts, lay_out_views
from emu3_megatron.demo.work import Work

AREA = 128 * 128
_FILM_AREA, _FILM_FRAMES = 7168, 32  # four seconds: twice stage 1's clip, longer than its context


def material(work: Work) -> None:
    lay_out(work.out / "photos", work.out / "clips", AREA)


def tokenizer(work: Work) -> None:
    work.emu3(
        *("tokenizer", "train", "tokenizer-tiny-cpu"),
        f"data.images={work.out / 'photos'}",
        f"data.clips={work.out / 'clips'}",
        f"run.dir={work.out / 'tokenizer-run'}",
    )


def prepare(work: Work) -> None:
    work.emu3(
        *("prepare", "all", "prepare-tiny-cpu", "--strict"),
        f"images.source={work.out / 'photos'}",
        f"clips.source={work.out / 'clips'}",
        *("--tokenizer", work.tokenizer, "--out", work.out / "data"),
    )


def stage_1(work: Work) -> None:
    """Half of the steps, then the other half from the checkpoint, in new processes."""
    recipe = _write_recipe(work)
    train = ["train", str(work.out / "recipe.yaml"), "parallel.tensor=2"]
    work.torchrun(*train, f"run.stop_after={recipe.run.steps // 2}")
    work.torchrun(*train)


def _write_recipe(work: Work) -> Recipe:
    """The shipped tiny recipe, on the demo's data, with two of its captions to draw."""
    values = yaml.safe_load(find_recipe("stage1-tiny-cpu").read_text(encoding="utf-8"))
    values["run"]["dir"] = str(work.out / "decoder-run")
    values["data"]["sources"] = [{"pack": str(work.out / "data/packs/stage1.pack")}]
    values["sample"] = {
        "every": values["run"]["steps"] // 2,
        "tokenizer": str(work.tokenizer),
        # Photos learned by heart need no guidance, and 3 makes noise of them: of two tokens that
        # cannot follow it prefers the one that is even less likely without a caption.
        "guidance": 1.0,
        "prompts": [_prompt(picture) for picture in trained(work.out / "data", "images")[:2]],
    }
    path = work.out / "recipe.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    return load_recipe(Recipe, path)


def _prompt(picture: Trained) -> dict[str, str | int]:
    meta = picture.vision.meta
    return {"caption": picture.caption, "height": meta.height, "width": meta.width}


def stage_2(work: Work) -> None:
    """Views of the photos and a longer clip, in sequences that two processes share."""
    out = work.out
    lay_out_views(out / "views", VIEWS, seed=0)
    lay_out_views(out / "views-held-out", HELD_OUT, seed=1)
    lay_out_clip(out / "film", _FILM_AREA, _FILM_FRAMES)
    lay_out_texts(out / "texts")
    work.emu3(
        *("prepare", "all", "prepare-tiny-cpu", "--strict"),
        f"images.source={out / 'views'}",
        f"clips.source={out / 'film'}",
        f"text.source={out / 'texts'}",
        *("--tokenizer", work.tokenizer, "--out", out / "data-views"),
        "packs=[{name: stage2, context: 2048, kinds: [images], select: captioned}, "
        "{name: film, context: 2048, kinds: [clips]}, "
        "{name: understanding, context: 704, kinds: [images], select: understanding}, "
        "{name: text, context: 704, kinds: [text]}]",
    )
    prepare_images(
        *(work, "views-held-out", "data-held-out"),
        "packs=[{name: stage2, context: 2048, kinds: [images], select: captioned}, "
        "{name: understanding, context: 704, kinds: [images], select: understanding}]",
    )
    work.torchrun(
        *("train", "stage2-tiny-cpu", f"run.dir={out / 'stage2-run'}"),
        f"run.init_from={out / 'decoder-run'}",
        f"data.sources=[{{pack: {out / 'data-views/packs/stage2.pack'}, weight: 0.7}}, "
        f"{{pack: {out / 'data-views/packs/film.pack'}, weight: 0.3}}]",
        validation(out / "data-held-out/packs/stage2.pack", every=10, batches=3),
        *("run.steps=160", "run.save_every=160", "optimizer.lr=2.0e-3"),
    )


def prepare_images(work: Work, source: str, out: str, *more: str) -> None:
    """Pictures with their captions, in folders of the demo's."""
    work.emu3(
        *("prepare", "images", "prepare-tiny-cpu", "--strict", "--source", work.out / source),
        *("--tokenizer", work.tokenizer, "--out", work.out / out),
        *more,
    )


def validation(pack: Path, every: int, batches: int) -> str:
    """The section of a recipe, as an override."""
    return f"validation={{every: {every}, batches: {batches}, sources: [{{pack: {pack}}}]}}"
