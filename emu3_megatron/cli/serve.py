"""`emu3 serve`: an HTTP server that OpenAI's clients can use."""

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from emu3_megatron.cli.sampling import (
    Checkpoint,
    CheckpointFolder,
    Context,
    Guidance,
    TokenizerFolder,
    tensor_size,
)
from emu3_megatron.errors import InputError

if TYPE_CHECKING:
    from emu3_megatron.parallel import Mesh
    from emu3_megatron.serving.service import ServedModel
    from emu3_megatron.serving.worker import Worker

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
KEY = "EMU3_API_KEY"


def serve(
    checkpoint: CheckpointFolder,
    host: Annotated[
        str, typer.Option(help="address to listen on; others than this machine need a key")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="to listen on")] = 8000,
    api_key_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help=f"holds the key that clients must send (default: ${KEY})"
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="of the model, for clients (default: the folder's)")
    ] = None,
    tokenizer: TokenizerFolder = None,
    guidance: Guidance = None,
    context: Context = None,
    rows: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="sequences at once; a guided picture takes two (default: what fits, 32 at most)",
        ),
    ] = None,
    queue: Annotated[
        int, typer.Option(min=0, help="rows that may be waited for; then calls are refused")
    ] = 64,
    drain: Annotated[
        float, typer.Option(min=0, help="seconds that calls have to end after SIGTERM")
    ] = 25.0,
) -> None:
    """Serve a checkpoint by HTTP, as OpenAI's clients expect it.

    Several processes share the decoder: torchrun --nproc-per-node N -m emu3_megatron serve …
    """
    from emu3_megatron.serving.bounds import Bounds
    from emu3_megatron.serving.commands import Channel
    from emu3_megatron.serving.engine import Engine
    from emu3_megatron.serving.metrics import Metrics
    from emu3_megatron.serving.running import bind, check_installed, run
    from emu3_megatron.serving.service import Service
    from emu3_megatron.serving.worker import follow

    check_installed()
    key = _read_key(api_key_file)
    if host not in _LOOPBACK and key is None:
        raise InputError(f"--host {host}: others could call; give a key by --api-key-file or {KEY}")
    source = Checkpoint.read(checkpoint)
    is_first = os.environ.get("RANK", "0") == "0"
    bound = bind(host, port) if is_first else None
    model = _describe(source, name or _name_of(checkpoint), tokenizer, guidance, context, rows)
    mesh = source.start()
    worker = _open(source, model, mesh)
    channel = Channel()
    if bound is None:
        # The first rank ends the others, when it has finished.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        follow(worker, channel)
        return
    metrics = Metrics(model.name)
    engine = Engine(worker, channel, metrics)
    service = Service(model, engine, metrics, Bounds(queue=queue, drain_seconds=drain), key=key)
    print(
        f"{model.name} at http://{host}:{port}: {model.rows} rows of {model.context:,} tokens",
        flush=True,
    )
    run(service, bound)


def _read_key(file: Path | None) -> str | None:
    key = file.read_text(encoding="utf-8").strip() if file else os.environ.get(KEY)
    if key == "":
        raise InputError(f"{file or KEY}: an empty key; write one there")
    return key


def _name_of(checkpoint: Path) -> str:
    path = checkpoint.resolve()
    while path.name in ("checkpoints", "latest") or path.name.startswith(("step", "iter")):
        path = path.parent
    return path.name


def _describe(
    source: Checkpoint,
    name: str,
    tokenizer: Path | None,
    guidance: float | None,
    context: int | None,
    rows: int | None,
) -> "ServedModel":
    """What is served, before any weight is read; raises InputError when it does not fit."""
    from emu3_megatron.generation.files.reading import Sizes, default_area
    from emu3_megatron.generation.limits import free_memory, trained_context
    from emu3_megatron.serving.service import ServedModel
    from emu3_megatron.serving.sizing import rows_that_fit

    context = context or trained_context(source.about)
    if context is None:
        raise InputError(f"{source.path}: it does not say its context; give --context")
    memory = free_memory(source.device)
    recipe = source.recipe
    settings = source.settings(guidance, 1.0, 1, 1.0, 0)
    return ServedModel(
        name=name,
        vocabulary=source.vocabulary,
        tokenizer=source.tokenizer(tokenizer),
        context=context,
        rows=rows_that_fit(recipe.model, recipe.precision, context, memory, tensor_size(), rows),
        grid=source.grid(""),
        guidance=settings.guidance,
        shown=Sizes.of(default_area(source.about), fps=4.0, frames=32),
    )


def _open(source: Checkpoint, model: "ServedModel", mesh: "Mesh") -> "Worker":
    from emu3_megatron.generation.generator import Generator
    from emu3_megatron.serving.scoring import Scorer
    from emu3_megatron.serving.worker import Worker

    decoder = source.open(mesh)
    generator = Generator(decoder, model.vocabulary, rows=model.rows, capacity=model.context)
    return Worker(generator, Scorer(decoder, generator.forward, model.vocabulary.size))
