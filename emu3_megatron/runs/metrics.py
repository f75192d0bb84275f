"""What a run tells: a line of JSON a step, TensorBoard, wandb, and a line on the screen."""

import hashlib
import json
import math
import os
import resource
import sys
import time
from collections.abc import Generator, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from emu3_megatron.config import ModelConfig, Recipe
from emu3_megatron.errors import InputError
from emu3_megatron.files import replacing

# Dense bf16 peaks in FLOP/s, from NVIDIA's data sheets.
PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "B200": 2250e12}


def flops_per_token(model: ModelConfig, context: int) -> float:
    """Training FLOPs of one token: 6 x matrix parameters, and causal attention (half the square).

    The head counts, the embedding does not. Recomputation is not counted.
    """
    attention = model.hidden * model.head_dim * (2 * model.heads + 2 * model.kv_heads)
    layer = attention + 3 * model.hidden * model.ffn
    head = model.hidden * model.vocabulary().size
    pairs = context / 2
    scores = 2 * 2 * pairs * model.heads * model.head_dim * model.layers
    return 6 * (layer * model.layers + head) + 3 * scores


def peak_flops() -> float | None:
    """Peak of this rank's device, where it is known."""
    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name()
    return next((peak for key, peak in PEAK_FLOPS.items() if key in name), None)


class Throughput:
    """Tokens a second over the steps since the last call, and MFU."""

    def __init__(self, recipe: Recipe, num_ranks: int):
        self.tokens_per_step = recipe.batch.size * recipe.context
        self.flops = flops_per_token(recipe.model, recipe.context)
        peak = peak_flops()
        self.peak = peak * num_ranks if peak else None
        self.start(0)

    def start(self, step: int) -> None:
        self.mark, self.step = time.perf_counter(), step

    def measure(self, step: int) -> dict[str, float]:
        now = time.perf_counter()
        step_seconds = (now - self.mark) / (step - self.step)
        rate = self.tokens_per_step / step_seconds
        self.start(step)
        measured = {"step_seconds": step_seconds, "tokens_per_second": rate}
        if self.peak:
            measured["mfu"] = rate * self.flops / self.peak
        return measured


T = TypeVar("T")


class Waited(Iterator[T]):
    """An iterator that knows how long its items were waited for."""

    def __init__(self, items: Iterable[T]):
        self._items = iter(items)
        self._seconds = 0.0

    def __next__(self) -> T:
        mark = time.perf_counter()
        item = next(self._items)
        self._seconds += time.perf_counter() - mark
        return item

    def close(self) -> None:
        """End the generator that the items come from, and the processes that read ahead for it.

        An error would keep both alive, and Python waits for such processes when it exits.
        """
        if isinstance(self._items, Generator):
            self._items.close()

    def take_seconds(self) -> float:
        """Seconds since the last call."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds


def peak_memory() -> int:
    """Bytes this rank has had in use at most: of its GPU, or of main memory without one."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Writer:
    """Takes rows of metrics, and sampled images if it can."""

    def write(self, row: dict[str, Any]) -> None:
        raise NotImplementedError

    def show(self, step: int, images: Mapping[str, Path]) -> None:
        """PNG files by their captions."""

    def close(self) -> None:
        raise NotImplementedError


class JsonLines(Writer):
    """`metrics.jsonl`. Rows past the step that a run resumes from are dropped.

    Rows that a full disk does not take are kept until it does.
    """

    def __init__(self, path: Path, resumed_step: int):
        lines = path.read_text().splitlines() if path.exists() else []
        with replacing(path) as beside:
            kept = (line for line in lines if _step_of(line) <= resumed_step)
            beside.write_text("".join(f"{line}\n" for line in kept))
        self.file = path.open("ab", buffering=0)
        self.kept = b""

    def write(self, row: dict[str, Any]) -> None:
        self.kept += (json.dumps(row) + "\n").encode()
        end = self.file.seek(0, os.SEEK_END)
        try:
            written = self.file.write(self.kept)
        except OSError as error:
            print(f"{self.file.name}: {error.strerror}; its rows are kept", file=sys.stderr)
            written = 0
        if written == len(self.kept):
            self.kept = b""
        else:
            self.file.truncate(end)  # no half rows

    def close(self) -> None:
        self.file.close()


def _step_of(line: str) -> float:
    """The step of a row; past every step for one that a killed run left unfinished."""
    try:
        return json.loads(line)["step"]
    except json.JSONDecodeError:
        return math.inf


class TensorBoard(Writer):
    """Event files. Those of an earlier start are hidden past the step that a run resumes from."""

    def __init__(self, folder: Path, resumed_step: int):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise InputError(
                "run.tensorboard=true needs tensorboard: pip install 'emu3-megatron[tracking]'"
            ) from None
        # Without a step to purge from, TensorBoard would show steps that were taken anew twice.
        self.writer = SummaryWriter(str(folder), purge_step=resumed_step + 1)

    def write(self, row: dict[str, Any]) -> None:
        for name, value in row.items():
            if name != "step":
                self.writer.add_scalar(name, value, row["step"])
        self.writer.flush()  # a run that is killed keeps its last rows

    def show(self, step: int, images: Mapping[str, Path]) -> None:
        for caption, path in images.items():
            pixels = np.asarray(Image.open(path).convert("RGB"))
            self.writer.add_image(f"samples/{caption}", pixels, step, dataformats="HWC")

    def close(self) -> None:
        self.writer.close()


class WandB(Writer):
    """One wandb run a run folder, resumed with it."""

    def __init__(self, recipe: Recipe):
        try:
            import wandb

            self.image = wandb.Image
        except ImportError:
            raise InputError(
                "run.wandb needs wandb: pip install 'emu3-megatron[tracking]'"
            ) from None
        self.run = wandb.init(
            project=recipe.run.wandb,
            name=recipe.run.dir.name,
            id=hashlib.sha256(str(recipe.run.dir.resolve()).encode()).hexdigest()[:16],
            dir=recipe.run.dir,
            resume="allow",
            config=recipe.model_dump(mode="json"),
        )

    def write(self, row: dict[str, Any]) -> None:
        self.run.log({k: v for k, v in row.items() if k != "step"}, step=row["step"])

    def show(self, step: int, images: Mapping[str, Path]) -> None:
        shown = [self.image(str(path), caption=caption) for caption, path in images.items()]
        self.run.log({"samples": shown}, step=step)

    def close(self) -> None:
        self.run.finish()


class ProgressLine(Writer):
    """Rate, time left, and the numbers one watches."""

    def __init__(self, first_step: int, steps: int):
        self.bar = tqdm(initial=first_step, total=steps, unit="step", dynamic_ncols=True)

    def write(self, row: dict[str, Any]) -> None:
        if "validation/loss" in row:
            self.bar.write(f"step {row['step']}: held-out loss {row['validation/loss']:.4f}")
        if "lr" not in row:
            return
        self.bar.set_postfix(
            loss=f"{row.get('loss', math.nan):.4f}",
            lr=f"{row['lr']:.1e}",
            tok_s=f"{row['tokens_per_second']:,.0f}",
            refresh=False,
        )
        self.bar.update(row["step"] - self.bar.n)

    def close(self) -> None:
        self.bar.close()


def open_writers(recipe: Recipe, resumed_step: int) -> list[Writer]:
    """Everything that rank 0 writes metrics to."""
    recipe.run.dir.mkdir(parents=True, exist_ok=True)
    writers: list[Writer] = [JsonLines(recipe.run.dir / "metrics.jsonl", resumed_step)]
    if recipe.run.tensorboard:
        writers.append(TensorBoard(recipe.run.dir / "tensorboard", resumed_step))
    if recipe.run.wandb:
        writers.append(WandB(recipe))
    writers.append(ProgressLine(resumed_step, recipe.run.steps))
    return writers


def finite(row: dict[str, Any]) -> dict[str, Any]:
    """JSON has no NaN: leave such values out."""
    return {k: v for k, v in row.items() if not (isinstance(v, float) and not math.isfinite(v))}
