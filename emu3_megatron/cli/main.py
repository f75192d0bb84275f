"""`emu3`: one verb for each stage of a model's life.

Nothing heavy is imported before a verb runs: Megatron's checkpoint writer starts processes that
import this module again.
"""

import argparse
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from emu3_megatron.errors import InputError, RunEnded


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a verb; a user's mistake ends in one line and exit code 2."""
    parsed = build_parser().parse_args(arguments)
    try:
        parsed.run(parsed)
    except (InputError, OSError) as error:
        if parsed.debug or (isinstance(error, OSError) and error.filename is None):
            raise
        _let_first_rank_speak()
        print(f"emu3: {_line_of(error)}", file=sys.stderr)
        sys.exit(2)
    except RunEnded as ended:  # on all ranks alike
        if os.environ.get("RANK", "0") == "0":
            print(f"emu3: {ended}", file=sys.stderr)
        sys.exit(ended.code)
    except KeyboardInterrupt:
        sys.exit(130)


def _line_of(error: InputError | OSError) -> str:
    if isinstance(error, OSError):  # a disk that is full, a folder that may not be written
        return f"{error.filename2 or error.filename}: {error.strerror}"
    return str(error)


def _let_first_rank_speak() -> None:
    """Under torchrun all ranks find the same mistake, and the first to leave ends the others."""
    if os.environ.get("RANK", "0") != "0":
        time.sleep(10)


@contextmanager
def _until_reader_leaves() -> Iterator[None]:
    """For verbs that only print: `| head` ends them without a traceback."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit
        sys.exit(1)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line for a wrong flag as for every other mistake."""
        self.exit(2, f"emu3: {message}; see {self.prog} --help\n")


def build_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="emu3",
        description="Train native multimodal models of the Emu3 kind, from photos to pictures.",
        epilog="The road: prepare → pack → train → generate. `emu3 demo` walks it on ten photos.",
    )
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    verbs = parser.add_subparsers(title="verbs", required=True, metavar="VERB")
    training = (_tokenizer, _prepare, _pack, _train, _status, _inspect)
    for add in (_demo, *training, _generate, _convert, _check):
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
    train.add_argument("--out", type=Path, required=True, help="run folder; gets tokenizer/")

    def run(parsed: argparse.Namespace) -> None:
        from emu3_megatron.cli import verbs

        verbs.train_tokenizer(parsed.recipe, parsed.overrides, parsed.out)

    train.set_defaults(run=run)


_PREPARED = {
    "images": "photos: scores, captions, codes, shards, packs",
    "clips": "videos: shots, scores, captions, codes, shards, packs",
    "text": ".jsonl, .parquet and .txt: tokens, each text once, shards, packs",
    "all": "everything that a recipe names",
}


def _prepare(verbs: argparse._SubParsersAction) -> None:
    verb = verbs.add_parser("prepare", help="photos, clips and text to token shards and packs")
    kinds = verb.add_subparsers(title="kinds", required=True, metavar="KIND")
    for kind, what in _PREPARED.items():
        _prepare_kind(kinds, kind, what)


def _prepare_kind(kinds: argparse._SubParsersAction, kind: str, what: str) -> None:
    verb = kinds.add_parser(kind, help=what)
    verb.add_argument(
        "recipe", nargs="?", help="a YAML file, or the name of a shipped recipe (default: none)"
    )
    _overrides_argument(verb)
    flags = {"out": verb.add_argument("--out", metavar="FOLDER", help="to make; `out`")}
    if kind != "all":
        source = verb.add_argument("--source", metavar="FOLDER", help=f"to read; `{kind}.source`")
        flags[f"{kind}.source"] = source
    flags["tokenizer"] = verb.add_argument(
        "--tokenizer", metavar="FOLDER", help="of the vision tokenizer; `tokenizer`"
    )
    flags["strict"] = verb.add_argument(
        "--strict",
        action="store_const",
        const="true",
        help="stop at the first item that cannot be used, instead of setting it aside; `strict`",
    )

    def run(parsed: argparse.Namespace) -> None:
        from emu3_megatron.cli import verbs

        given = {key: getattr(parsed, flag.dest) for key, flag in flags.items()}
        verbs.prepare(kind, parsed.recipe, parsed.overrides, given)

    verb.set_defaults(run=run)


def _pack(verbs: argparse._SubParsersAction) -> None:
    verb = verbs.add_parser("pack", help="pack the documents of shards into sequences")
    verb.add_argument("shards", nargs="+", help="shards, by path without suffix")
    verb.add_argument("--out", type=Path, required=True, help="folder to write, NAME.pack")
    verb.add_argument("--context", type=_positive, required=True, help="tokens a sequence")
    verb.add_argument("--seed", type=int, default=0)
    verb.add_argument(
        "--max-documents", type=_positive, default=256, help="a sequence (default: 256)"
    )
    verb.add_argument("--whole-texts", action="store_true", help="cut no text to fill gaps")
    verb.add_argument("--model", help="whose vocabulary (default: the shard says)")

    def run(parsed: argparse.Namespace) -> None:
        from emu3_megatron.cli import verbs

        verbs.pack(
            parsed.shards,
            parsed.out,
            parsed.context,
            parsed.model,
            seed=parsed.seed,
            max_documents=parsed.max_documents,
            cut_text=not parsed.whole_texts,
        )

    verb.set_defaults(run=run)


def _train(verbs: argparse._SubParsersAction) -> None:
    verb = verbs.add_parser(
        "train",
        help="train a decoder as a recipe says; resumes from its run folder",
        epilog="Several processes: torchrun --nproc-per-node N -m emu3_megatron train RECIPE …",
    )
    _recipe_arguments(verb)
    verb.add_argument(
        "--accept", action="store_true", help="resume though the recipe changed what is learned"
    )

    def run(parsed: argparse.Namespace) -> None:
        from emu3_megatron.cli import verbs

        verbs.train(parsed.recipe, parsed.overrides, parsed.accept)

    verb.set_defaults(run=run)


def _recipe_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("recipe", help="a YAML file, or the name of a shipped recipe")
    _overrides_argument(verb)


def _overrides_argument(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "overrides", nargs="*", default=[], metavar="dotted.key=value", help="change the recipe"
    )


def _generate(verbs: argparse._SubParsersAction) -> None:
    verb = verbs.add_parser("generate", help="an image from text")
    verb.add_argument("--checkpoint", type=Path, required=True, help="run or checkpoint folder")
    verb.add_argument("--prompt", required=True)
    verb.add_argument("--out", type=Path, required=True, help="PNG to write")
    verb.add_argument("--tokenizer", type=Path, help="folder (default: the recipe's)")
    verb.add_argument("--grid", type=_grid, help="HEIGHTxWIDTH in codes (default: the recipe's)")
    verb.add_argument("--guidance", type=float, default=3.0)
    verb.add_argument("--temperature", type=float, default=1.0, help="0 takes the likeliest")
    verb.add_argument("--top-k", type=int, default=2048)
    verb.add_argument("--top-p", type=float, default=1.0)
    verb.add_argument("--seed", type=int, default=0)

    def run(parsed: argparse.Namespace) -> None:
        from emu3_megatron.cli import verbs

        verbs.generate(
            parsed.checkpoint,
            parsed.prompt,
            parsed.out,
            parsed.tokenizer,
            parsed.grid,
            guidance=parsed.guidance,
            temperature=parsed.temperature,
            top_k=parsed.top_k,
            top_p=parsed.top_p,
            seed=parsed.seed,
        )

    verb.set_defaults(run=run)


def _convert(verbs: argparse._SubParsersAction) -> None:
    verb = verbs.add_parser("convert", help="Hugging Face weights in and out")
    actions = verb.add_subparsers(title="actions", required=True, metavar="ACTION")
    _convert_import(actions)
    _convert_export(actions)
    _convert_verify(actions)


def _convert_import(actions: argparse._SubParsersAction) -> None:
    verb = actions.add_parser("import", help="BAAI's, transformers' or MoVQGAN's weights to ours")
    verb.add_argument("--from", dest="source", type=Path, required=True, help="folder to read")
    verb.add_argument("--to", dest="target", type=Path, required=True, help="folder to make")
    verb.add_argument(
        "--tensor",
        type=_positive,
        default=1,
        help="refuse what does not divide over so many tensor parallel ranks; what is written "
        "opens on any number that does (default: 1)",
    )
    _ranks_file_argument(verb)

    def run(parsed: argparse.Namespace) -> None:
        from emu3_megatron.cli import verbs

        verbs.convert_import(parsed.source, parsed.target, parsed.tensor, parsed.ranks_file)

    verb.set_defaults(run=run)


def _convert_export(actions: argparse._SubParsersAction) -> None:
    verb = actions.add_parser("export", help="our weights to a folder that transformers loads")
    verb.add_argument(
        "--from", dest="source", type=Path, required=True, help="run, checkpoint or tokenizer"
    )
    verb.add_argument("--to", dest="target", type=Path, required=True, help="folder to make")
    verb.add_argument(
        "--layout",
        choices=("transformers", "baai", "hub"),
        default="transformers",
        help="whose names (default: transformers; hub: its files before 4.52)",
    )
    verb.add_argument("--tokenizer", type=Path, help="vision tokenizer to put beside the decoder")
    _ranks_file_argument(verb)

    def run(parsed: argparse.Namespace) -> None:
        from emu3_megatron.cli import verbs

        verbs.convert_export(
            parsed.source, parsed.target, parsed.layout, parsed.tokenizer, parsed.ranks_file
        )

    verb.set_defaults(run=run)


def _convert_verify(actions: argparse._SubParsersAction) -> None:
    verb = actions.add_parser("verify", help="compare both sides on random input, in fp32")
    verb.add_argument("--hf", type=Path, required=True, help="folder of Hugging Face")
    verb.add_argument("--checkpoint", type=Path, required=True, help="run, checkpoint or tokenizer")

    def run(parsed: argparse.Namespace) -> None:
        from emu3_megatron.cli import verbs

        verbs.convert_verify(parsed.hf, parsed.checkpoint)

    verb.set_defaults(run=run)


def _ranks_file_argument(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--ranks-file", type=Path, help="emu3.tiktoken (default: dashscope's copy)")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text}: give a whole number of 1 or more")
    return int(text)


def _grid(text: str) -> tuple[int, int]:
    height, times, width = text.partition("x")
    if not (times and height.isdigit() and width.isdigit() and int(height) and int(width)):
        raise argparse.ArgumentTypeError(f"{text}: write HEIGHTxWIDTH, 90x90 say")
    return int(height), int(width)


def _inspect(verbs: argparse._SubParsersAction) -> None:
    verb = verbs.add_parser("inspect", help="look into a run, or into prepared data")
    things = verb.add_subparsers(title="things", required=True, metavar="THING")
    batch = things.add_parser("batch", help="the documents of a step, from its number alone")
    batch.add_argument("folder", type=Path, metavar="RUN", help="the run's folder")
    batch.add_argument("--step", type=_positive, required=True)

    def run(parsed: argparse.Namespace) -> None:
        from emu3_megatron.cli import verbs

        with _until_reader_leaves():
            verbs.inspect_batch(parsed.folder, parsed.step)

    batch.set_defaults(run=run)
    _inspect_data(things)


def _inspect_data(things: argparse._SubParsersAction) -> None:
    data = things.add_parser("data", help="a page of samples, of what was set aside, and plots")
    data.add_argument("folder", type=Path, metavar="DATA", help="the `out` of a prepare recipe")
    data.add_argument("--out", type=Path, default=Path("data.html"), help="default: data.html")
    data.add_argument("--tokenizer", type=Path, help="folder; decodes images from their tokens")
    data.add_argument("--samples", type=_positive, default=24, help="of each kind (default: 24)")

    def run(parsed: argparse.Namespace) -> None:
        from emu3_megatron.cli import verbs

        verbs.inspect_data(parsed.folder, parsed.out, parsed.tokenizer, parsed.samples)

    data.set_defaults(run=run)


def _status(verbs: argparse._SubParsersAction) -> None:
    verb = verbs.add_parser("status", help="where a run is, from its folder alone")
    verb.add_argument("folder", type=Path, metavar="RUN", help="the run's folder")

    def run(parsed: argparse.Namespace) -> None:
        from emu3_megatron.cli import verbs

        with _until_reader_leaves():
            verbs.status(parsed.folder)

    verb.set_defaults(run=run)


def _check(verbs: argparse._SubParsersAction) -> None:
    verb = verbs.add_parser("check", help="is a shard, a pack or a recipe sound?")
    verb.add_argument(
        "path", nargs="?", help="a shard, a pack folder, or a recipe; without it the installation"
    )
    verb.add_argument("--model", help="whose vocabulary (default: the shard says)")
    verb.add_argument(
        "--deep", action="store_true", help="of prepared data: read and parse every document"
    )

    def run(parsed: argparse.Namespace) -> None:
        from emu3_megatron.cli import verbs

        verbs.check(parsed.path, parsed.model, parsed.deep)

    verb.set_defaults(run=run)
