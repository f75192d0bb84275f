"""Training the tokenizer on a folder of photos and clips."""

import json
import logging
import math
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from emu3_megatron.config.tokenizer import TokenizerRecipe
from emu3_megatron.vision.codebook import CodebookKeeper
from emu3_megatron.vision.losses import Reconstruction, psnr_db, weighted_loss
from emu3_megatron.vision.samples import Broken, Samples
from emu3_megatron.vision.tokenizer import VisionTokenizer

logger = logging.getLogger(__name__)


def train_tokenizer(
    recipe: TokenizerRecipe, run_folder: str | Path, device: str | torch.device = "cpu"
) -> VisionTokenizer:
    """Train; write `metrics.jsonl` and, at the end, `tokenizer/` into `run_folder`.

    The same recipe gives the same weights on a CPU. Files that cannot be used are named in a
    warning, once, and skipped.

    Raises:
        InputError: no photo at all, or none that can be used.
    """
    return TokenizerTrainer(recipe, Path(run_folder), torch.device(device)).run()


class TokenizerTrainer:
    def __init__(self, recipe: TokenizerRecipe, run_folder: Path, device: torch.device):
        self.recipe = recipe
        self.run_folder = run_folder
        self.device = device
        torch.manual_seed(recipe.seed)
        if recipe.start_from is None:
            tokenizer = VisionTokenizer(recipe.network)
        else:
            tokenizer = VisionTokenizer.load(recipe.start_from)
        self.tokenizer = tokenizer.to(device)
        self.optimizer = torch.optim.Adam(tokenizer.parameters(), recipe.lr, recipe.betas)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._lr_factor)
        self.keeper = CodebookKeeper(tokenizer.quantize, recipe.seed)
        self.samples = Samples(recipe.data, recipe.seed, recipe.steps * recipe.batch_size)
        self.skipped: set[Path] = set()

    def run(self) -> VisionTokenizer:
        self.run_folder.mkdir(parents=True, exist_ok=True)
        batches = DataLoader(
            self.samples,
            batch_size=self.recipe.batch_size,
            num_workers=self.recipe.workers,
            collate_fn=list,
        )
        with (
            open(self.run_folder / "metrics.jsonl", "w") as metrics_file,
            tqdm(batches, desc="tokenizer", unit="step") as progress,
        ):
            lately: list[dict[str, float]] = []
            began, seen = time.perf_counter(), 0
            for step, batch in enumerate(progress, start=1):
                if usable := self._without_broken(batch):
                    lately.append(self.step(step, usable))
                    seen += len(usable)
                if lately and (step % self.recipe.log_every == 0 or step == self.recipe.steps):
                    metrics = _mean(lately)
                    metrics["images_per_second"] = seen / (time.perf_counter() - began)
                    metrics_file.write(json.dumps({"step": step, **metrics}) + "\n")
                    metrics_file.flush()
                    progress.set_postfix_str(f"{metrics['psnr_db']:.1f} dB")
                    lately.clear()
        return self._finish()

    def step(self, step: int, batch: Sequence[Tensor]) -> dict[str, Any]:
        """One optimizer step on pixels [3, h, w] and [t, 3, h, w] of any sizes; its metrics."""
        # BatchNorm is all that the mode changes. Its statistics are set early and then kept, so
        # that the network trains, for most of the time, as the function that it will be used as.
        self.tokenizer.train(step < self.recipe.batch_norm_steps)
        if step == self.recipe.quantize_from and step > 0:
            self.keeper.fit()
        totals: dict[str, float] = defaultdict(float)
        for pixels in _group_by_shape(batch):
            share = len(pixels) / len(batch)
            result = self._reconstruct(pixels.to(self.device), step >= self.recipe.quantize_from)
            loss, terms = weighted_loss(result, self.recipe.loss.model_dump())
            (loss * share).backward()
            for name, value in {"loss": loss, **terms, "psnr_db": psnr_db(result)}.items():
                totals[name] += value.item() * share
        torch.nn.utils.clip_grad_norm_(self.tokenizer.parameters(), self.recipe.clip_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.schedule.step()
        totals["codebook_usage"] = self.keeper.usage()
        if (
            step >= self.recipe.quantize_from
            and (step + 1) % self.recipe.revive_every == 0
            and step < 0.8 * self.recipe.steps
        ):
            self.keeper.revive()
        return dict(totals)

    def _reconstruct(self, pixels: Tensor, quantized: bool) -> Reconstruction:
        image = pixels.ndim == 4
        encode = self.tokenizer.image_latents if image else self.tokenizer.clip_latents
        latents = encode(pixels)
        codes = self.tokenizer.quantize.nearest(latents)
        self.keeper.observe(latents, codes)
        vectors = self.tokenizer.quantize.lookup(codes) if quantized else latents.detach()
        # straight through: the decoder sees the codes, its gradient reaches the encoder
        through = latents + (vectors - latents).detach()
        rebuilt = self.tokenizer.decode_vectors(through, frames=1 if image else None)
        return Reconstruction(pixels, rebuilt[:, 0] if image else rebuilt, latents, vectors)

    def _lr_factor(self, step: int) -> float:
        warmup = self.recipe.lr_warmup_steps
        if step < warmup:
            return (step + 1) / (warmup + 1)
        done = (step - warmup) / max(1, self.recipe.steps - warmup)
        return 0.5 * (1 + math.cos(math.pi * min(1, done)))

    def _without_broken(self, batch: Sequence[Tensor | Broken]) -> list[Tensor]:
        for sample in batch:
            if isinstance(sample, Broken) and sample.path not in self.skipped:
                self.skipped.add(sample.path)
                logger.warning("skipped: %s", sample.reason)
        return [sample for sample in batch if isinstance(sample, Tensor)]

    def _finish(self) -> VisionTokenizer:
        if self.skipped:
            logger.warning("skipped %d files in all", len(self.skipped))
        self.tokenizer.eval().save(self.run_folder / "tokenizer")
        return self.tokenizer


def _mean(metrics: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: sum(m[name] for m in metrics) / len(metrics) for name in metrics[0]}


def _group_by_shape(batch: Sequence[Tensor]) -> list[Tensor]:
    groups: dict[torch.Size, list[Tensor]] = defaultdict(list)
    for pixels in batch:
        groups[pixels.shape].append(pixels)
    return [torch.stack(group) for group in groups.values()]
