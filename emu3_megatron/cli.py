"""`emu3`: one verb for each stage of a model's life.

Nothing heavy is imported before a verb runs: Megatron's checkpoint writer starts processes that
import this module again.
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from emu3_megatron.errors import InputError


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a verb; a user's mistake ends in one line and exit code 2."""
    parsed = build_parser().parse_args(arguments)
    try:
        parsed.run(parsed)
    except InputError as error:
        if parsed.debug:
            raise
        _let_first_rank_speak()
        print(f"emu3: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def _let_first_rank_speak() -> None:
    """Under torchrun all ranks find the same mistake, and the first to leave ends the others."""
    if os.environ.get("RANK", "0") != "0":
        time.sleep(10)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="emu3",
        description="Train native multimodal models of the Emu3 kind, from photos to pictures.",
        epilog="The road: prepare → pack → train → generate. `emu3 demo` walks it on ten photos.",
    )
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    verbs = parser.add_subparsers(title="verbs", required=True, metavar="VERB")
    for add in (_demo, _tokenizer, _prepare, _pack, _train, _generate, _check):
        add(verbs)
    return parser


def _demo(verbs: argparse._SubParsersAction) -> None:
    verb = verbs.add_parser("demo", help="the whole road on ten photos and a clip, on a CPU")
    verb.add_argument("--out", type=Path, default=Path("demo"), help="folder (default: demo)")

    def run(parsed: argparse.Namespace) -> None:
        from emu3_megatron.demo import run_demo

        run_demo(parsed.out)

    verb.set_defaults(run=run)


def _tokenizer(verbs: argparse._SubParsersAction) -> None:
    verb = verbs.add_parser("tokenizer", help="train the vision tokenizer")
    actions = verb.add_subparsers(title="actions", required=True, metavar="ACTION")
    train = actions.add_parser("train", help="train on a folder of photos and clips")
    _recipe_arguments(train)

    def run(parsed: argparse.Namespace) -> None:
        from emu3_megatron.config import load_recipe
        from emu3_megatron.config.tokenizer import TokenizerRecipe
        from emu3_megatron.vision.train import train_tokenizer

        train_tokenizer(load_recipe(TokenizerRecipe, parsed.recipe, parsed.overrides))

    train.set_defaults(run=run)


def _prepare(verbs: argparse._SubParsersAction) -> None:
    verb = verbs.add_parser("prepare", help="photos, clips and text to token shards")
    kinds = verb.add_subparsers(title="kinds", required=True, metavar="KIND")
    for kind, what in (
        ("images", "photos with a .txt caption of the same name beside each"),
        ("clips", "videos with a .txt caption of the same name beside each"),
        ("text", ".txt files, or .jsonl files with a field `text`"),
    ):
        _prepare_kind(kinds.add_parser(kind, help=what), kind)


def _prepare_kind(verb: argparse.ArgumentParser, kind: str) -> None:
    verb.add_argument("--source", type=Path, required=True, help="folder to read")
    verb.add_argument("--out", type=Path, required=True, help="shard to write, without suffix")
    verb.add_argument("--strict", action="store_true", help="refuse bad files, don't skip them")
    verb.add_argument("--ranks-file", type=Path, help="emu3.tiktoken (default: dashscope's copy)")
    if kind == "text":
        verb.add_argument("--bytes", action="store_true", help="byte vocabulary, of the tiny model")
        verb.add_argument("--codes", type=int, default=32_768, help="codes of the vocabulary")
    else:
        verb.add_argument("--tokenizer", type=Path, required=True, help="folder of the tokenizer")
        verb.add_argument("--area", type=int, default=512 * 512, help="pixels (default: 512²)")
    if kind == "images":
        verb.add_argument(
            "--understanding",
            action="store_true",
            help="write each image once more with its caption after it",
        )
    verb.set_defaults(run=lambda parsed: _run_prepare(parsed, kind))


def _run_prepare(parsed: argparse.Namespace, kind: str) -> None:
    from emu3_megatron import prepare

    raise NotImplementedError(prepare)


def _pack(verbs: argparse._SubParsersAction) -> None:
    verb = verbs.add_parser("pack", help="pack the documents of shards into sequences")
    verb.add_argument("shards", nargs="+", type=Path, help="shards, without .bin or .idx")
    verb.add_argument("--out", type=Path, required=True, help="pack folder to write (NAME.pack)")
    verb.add_argument("--context", type=int, required=True, help="tokens a sequence")
    verb.add_argument("--seed", type=int, default=0)
    verb.add_argument("--max-documents", type=int, default=64, help="a pack (default: 64)")
    verb.add_argument("--whole-texts", action="store_true", help="never cut text to fill room")

    def run(parsed: argparse.Namespace) -> None:
        raise NotImplementedError

    verb.set_defaults(run=run)


def _train(verbs: argparse._SubParsersAction) -> None:
    verb = verbs.add_parser(
        "train",
        help="train a decoder as a recipe says; resumes from its run folder",
        epilog="Several processes: torchrun --nproc-per-node N -m emu3_megatron train RECIPE …",
    )
    _recipe_arguments(verb)

    def run(parsed: argparse.Namespace) -> None:
        from emu3_megatron.config import Recipe, load_recipe

        recipe = load_recipe(Recipe, parsed.recipe, parsed.overrides)  # before slow imports
        from emu3_megatron.training import train

        sampler = None
        if recipe.sample:
            from emu3_megatron.generation.sampler import sampler_of

            sampler = sampler_of(recipe)
        train(recipe, sampler)

    verb.set_defaults(run=run)


def _recipe_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("recipe", help="a YAML file, or the name of a shipped recipe")
    verb.add_argument("overrides", nargs="*", metavar="dotted.key=value", help="change the recipe")


def _generate(verbs: argparse._SubParsersAction) -> None:
    verb = verbs.add_parser("generate", help="an image from text")
    verb.add_argument("--checkpoint", type=Path, required=True, help="run or checkpoint folder")
    verb.add_argument("--prompt", required=True)
    verb.add_argument("--out", type=Path, required=True, help="PNG to write")
    verb.add_argument("--tokenizer", type=Path, help="folder (default: the recipe's)")
    verb.add_argument("--height", type=int, help="rows of codes (default: as trained, or 90)")
    verb.add_argument("--width", type=int, help="columns of codes")
    verb.add_argument("--guidance", type=float, default=3.0)
    verb.add_argument("--temperature", type=float, default=1.0, help="0 takes the likeliest")
    verb.add_argument("--top-k", type=int, default=2048)
    verb.add_argument("--top-p", type=float, default=1.0)
    verb.add_argument("--seed", type=int, default=0)

    def run(parsed: argparse.Namespace) -> None:
        raise NotImplementedError

    verb.set_defaults(run=run)


def _check(verbs: argparse._SubParsersAction) -> None:
    verb = verbs.add_parser("check", help="is a shard, a pack or a recipe sound?")
    verb.add_argument("path", help="a shard (with or without suffix), a pack folder, a recipe")

    def run(parsed: argparse.Namespace) -> None:
        raise NotImplementedError

    verb.set_defaults(run=run)
