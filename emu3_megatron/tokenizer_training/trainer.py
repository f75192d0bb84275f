"""Trains the tokenizer on a folder of photos and clips."""

import json
import logging
import math
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from emu3_megatron.config.tokenizer import TokenizerRecipe
from emu3_megatron.errors import InputError
from emu3_megatron.tokenizer_training.codebook import CodebookKeeper
from emu3_megatron.tokenizer_training.initialization import start_from_principal_components
from emu3_megatron.tokenizer_training.losses.terms import Reconstruction, psnr_db, weighted_loss
from emu3_megatron.tokenizer_training.samples import Broken, Samples
from emu3_megatron.vision.tokenizer import VisionTokenizer

logger = logging.getLogger(__name__)
_REVIVING = 0.8  # of the training; after it every code stays where its gradient puts it
_LOOKED_AT = 32  # samples, before the first step

Metrics = dict[str, float]


def train_tokenizer(
    recipe: TokenizerRecipe, run_folder: str | Path, device: str | torch.device = "cpu"
) -> VisionTokenizer:
    """Train; write `metrics.jsonl` and, at the end, `tokenizer/` into `run_folder`.

    The same recipe gives the same weights on a CPU with the same number of threads. Files that
    cannot be used are named in a warning, once, and skipped; the number of them is in the metrics.

    Returns:
        The tokenizer, in eval mode.

    Raises:
        InputError: no such folder, or nothing in it that can be used.
    """
    return TokenizerTrainer(recipe, Path(run_folder), torch.device(device)).run()


class TokenizerTrainer:
    def __init__(self, recipe: TokenizerRecipe, run_folder: Path, device: torch.device):
        torch.manual_seed(recipe.seed)
        self.recipe = recipe
        self.run_folder = run_folder
        self.device = device
        self.samples = Samples(recipe.data, recipe.seed, recipe.steps * recipe.batch_size)
        self.skipped: set[Path] = set()
        if recipe.start_from is None:
            self.tokenizer = VisionTokenizer(recipe.network).to(device)
            self.plain_steps = recipe.plain_steps
            if frames := list(self._first_frames()):
                start_from_principal_components(self.tokenizer.encoder, frames)
        else:
            self.tokenizer = VisionTokenizer.load(recipe.start_from).to(device)
            self.plain_steps = 0  # it comes with a codebook
        self.keeper = CodebookKeeper(self.tokenizer.quantize, recipe.seed)
        self.optimizer = torch.optim.Adam(self.tokenizer.parameters(), recipe.lr, recipe.betas)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._lr_factor)

    def run(self) -> VisionTokenizer:
        recipe, done = self.recipe, 0
        batches = DataLoader(
            self.samples, recipe.batch_size, num_workers=recipe.workers, collate_fn=list
        )
        with (
            _metrics_file(self.run_folder) as lines,
            tqdm(batches, desc="tokenizer", unit="step") as progress,
        ):
            log = _Log(lines)
            for step, batch in enumerate(progress, start=1):
                if usable := self._without_broken(batch):
                    log.add(self.step(step, usable), samples=len(usable))
                    done += 1
                if step % recipe.log_every == 0 or step == recipe.steps:
                    progress.set_postfix_str(log.write(step, skipped_files=len(self.skipped)))
        if not done:
            raise InputError(f"{recipe.data.images}: not one of its files could be used")
        self.tokenizer.eval().save(self.run_folder / "tokenizer")
        return self.tokenizer

    def _first_frames(self) -> Iterator[Tensor]:
        for i in range(min(_LOOKED_AT, len(self.samples))):
            sample = self.samples[i]
            if isinstance(sample, Tensor):
                yield sample.view(-1, *sample.shape[-3:]).to(self.device)

    def step(self, step: int, batch: Sequence[Tensor]) -> Metrics:
        """Optimizer step `step`, from 1, on pixels [3, h, w] and [t, 3, h, w] of any sizes."""
        # BatchNorm is all that the mode changes. Its statistics are set early and then kept, so
        # that the network is trained, most of the time, as the function it will be used as.
        self.tokenizer.train(step <= self.recipe.batch_norm_steps)
        if 0 < self.plain_steps == step - 1:
            self.keeper.fit()
        metrics = self._backward(batch, quantized=step > self.plain_steps)
        torch.nn.utils.clip_grad_norm_(self.tokenizer.parameters(), self.recipe.clip_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.schedule.step()
        metrics["codebook_usage"] = self.keeper.usage()
        if step % self.recipe.revive_every == 0:
            self.keeper.end_round(revive=step <= _REVIVING * self.recipe.steps)
        return metrics

    def _backward(self, batch: Sequence[Tensor], quantized: bool) -> Metrics:
        weights = self.recipe.loss.model_dump()
        metrics: Metrics = defaultdict(float)
        for pixels in _group_by_shape(batch):
            share = len(pixels) / len(batch)
            result = self._reconstruct(pixels.to(self.device), quantized)
            loss, terms = weighted_loss(result, weights)
            (loss * share).backward()
            for name, value in {"loss": loss, **terms, "psnr_db": psnr_db(result)}.items():
                metrics[name] += value.item() * share
        return metrics

    def _reconstruct(self, pixels: Tensor, quantized: bool) -> Reconstruction:
        image = pixels.ndim == 4
        latents = self._latents(pixels)
        codes = self.tokenizer.quantize.nearest(latents)
        self.keeper.observe(latents, codes)
        vectors = self.tokenizer.quantize.lookup(codes) if quantized else latents.detach()
        # straight through: the decoder sees the codes, its gradient reaches the encoder
        through = latents + (vectors - latents).detach()
        rebuilt = self.tokenizer.decode_vectors(through, frames=1 if image else None)
        return Reconstruction(pixels, rebuilt[:, 0] if image else rebuilt, latents, vectors)

    def _latents(self, pixels: Tensor) -> Tensor:
        image = pixels.ndim == 4
        return (self.tokenizer.image_latents if image else self.tokenizer.clip_latents)(pixels)

    def _lr_factor(self, steps_done: int) -> float:
        """A linear rise, then a cosine down to 0."""
        warmup = self.recipe.lr_warmup_steps
        if steps_done < warmup:
            return (steps_done + 1) / (warmup + 1)
        fallen = (steps_done - warmup) / max(1, self.recipe.steps - warmup)
        return 0.5 * (1 + math.cos(math.pi * fallen))

    def _without_broken(self, batch: Sequence[Tensor | Broken]) -> list[Tensor]:
        for sample in batch:
            if isinstance(sample, Broken) and sample.path not in self.skipped:
                self.skipped.add(sample.path)
                logger.warning("skipped: %s", sample.reason)
        return [sample for sample in batch if isinstance(sample, Tensor)]


class _Log:
    """Lines of metrics, each the mean over the steps since the last."""

    def __init__(self, lines: TextIO):
        self.lines = lines
        self._start()

    def _start(self) -> None:
        self.steps: list[Metrics] = []
        self.samples = 0
        self.began = time.perf_counter()

    def add(self, metrics: Metrics, samples: int) -> None:
        self.steps.append(metrics)
        self.samples += samples

    def write(self, step: int, skipped_files: int) -> str:
        """Write a line; returns what of it a progress bar shows."""
        if not self.steps:
            return "nothing usable"
        means = {
            name: sum(metrics[name] for metrics in self.steps) / len(self.steps)
            for name in self.steps[0]
        }
        rate = self.samples / (time.perf_counter() - self.began)
        line = {"step": step, **means, "images_per_second": rate, "skipped_files": skipped_files}
        self.lines.write(json.dumps(line) + "\n")
        self.lines.flush()
        self._start()
        return f"{means['psnr_db']:.1f} dB"


@contextmanager
def _metrics_file(run_folder: Path) -> Iterator[TextIO]:
    run_folder.mkdir(parents=True, exist_ok=True)
    with open(run_folder / "metrics.jsonl", "w") as lines:
        yield lines


def _group_by_shape(batch: Sequence[Tensor]) -> list[Tensor]:
    groups: dict[torch.Size, list[Tensor]] = defaultdict(list)
    for pixels in batch:
        groups[pixels.shape].append(pixels)
    return [torch.stack(group) for group in groups.values()]
