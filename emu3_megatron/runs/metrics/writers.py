"""Writers of metrics: JSON lines, TensorBoard, wandb, and a progress bar."""

import hashlib
import json
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from emu3_megatron.config.runs import RunConfig
from emu3_megatron.errors import InputError
from emu3_megatron.files import replacing


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

    def __init__(self, config: RunConfig, recipe: Any):
        try:
            import wandb

            self.image = wandb.Image
        except ImportError:
            raise InputError(
                "run.wandb needs wandb: pip install 'emu3-megatron[tracking]'"
            ) from None
        self.run = wandb.init(
            project=config.wandb,
            name=config.dir.name,
            id=hashlib.sha256(str(config.dir.resolve()).encode()).hexdigest()[:16],
            dir=config.dir,
            resume="allow",
            config=recipe,
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


def open_writers(config: RunConfig, about: dict[str, Any], resumed_step: int) -> list[Writer]:
    """Everything that the first rank writes metrics to.

    Args:
        about: of the run; wandb keeps its recipe.
        resumed_step: rows of later steps, left by an earlier start, are dropped.
    """
    config.dir.mkdir(parents=True, exist_ok=True)
    writers: list[Writer] = [JsonLines(config.dir / "metrics.jsonl", resumed_step)]
    if config.tensorboard:
        writers.append(TensorBoard(config.dir / "tensorboard", resumed_step))
    if config.wandb:
        writers.append(WandB(config, about.get("recipe")))
    writers.append(ProgressLine(resumed_step, config.steps))
    return writers
