"""Places the codes of the codebook, keeps them in use, and counts their use.

A code that no latent is nearest to gets no gradient and stays unused, and of a fresh codebook that
is nearly every code. So the codes are placed by k-means where the latents are, and codes unused for
a while are moved onto latents seen lately. All of it follows from the seed, the step, and latents
and counts that are summed over ranks: every rank, in any layout, does the same.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from emu3_megatron.checkpoints.state import State
from emu3_megatron.config.tokenizer_training import CodebookConfig
from emu3_megatron.tokenizer_training.kmeans import fit, fit_beside
from emu3_megatron.vision.measures.usage import usage_of
from emu3_megatron.vision.quantizer import VectorQuantizer

KINDS = ("images", "clips")
KEPT_A_SAMPLE = 1024  # latents
_BUCKETS = 10  # of the counts: the oldest is dropped as a new one begins


@dataclass(frozen=True)
class Seen:
    """What all ranks saw in a step.

    Attributes:
        latents_bmc: some latents of each sample.
        counts_b: how many of them are latents; the rest is padding.
        is_clip_b: whether the sample is a clip.
        uses: [kinds, codes], how often each code was chosen.
    """

    latents_bmc: Tensor
    counts_b: Tensor
    is_clip_b: Tensor
    uses: Tensor


class CodebookKeeper:
    """Places, restarts and counts codes.

    Args:
        seed: of every choice.
        clip_share: share of the restarts that go to latents of clips, where there are any.
    """

    def __init__(
        self, quantizer: VectorQuantizer, config: CodebookConfig, seed: int, clip_share: float
    ):
        self.quantizer, self.config = quantizer, config
        self.seed, self.clip_share = seed, clip_share
        book_kc = self._book_kc
        codes, length = book_kc.shape
        self.latents_wc = torch.zeros(config.window * codes, length).to(book_kc)
        self.is_clip_w = torch.zeros(len(self.latents_wc), dtype=torch.bool, device=book_kc.device)
        self.filled = self.place = 0
        self.uses_k = torch.zeros(codes, dtype=torch.int64, device=book_kc.device)
        self.counts = torch.zeros(
            (_BUCKETS, len(KINDS), codes), dtype=torch.int64, device=book_kc.device
        )

    @property
    def _book_kc(self) -> Tensor:
        return self.quantizer.embedding.weight.data

    def choose(self, index: int, latents_nc: Tensor) -> Tensor:
        """The latents of a sample that are kept, at most 1,024, whatever else is in the batch."""
        draw = torch.Generator().manual_seed((self.seed << 32) + index)
        chosen = torch.randperm(len(latents_nc), generator=draw)[:KEPT_A_SAMPLE]
        return latents_nc[chosen.to(latents_nc.device)]

    def observe(self, step: int, seen: Seen) -> None:
        """Remember the latents of a step, and count its codes."""
        kept = torch.arange(seen.latents_bmc.shape[1], device=seen.counts_b.device)
        valid_bm = kept < seen.counts_b[:, None]
        self._remember(
            seen.latents_bmc[valid_bm], seen.is_clip_b[:, None].expand_as(valid_bm)[valid_bm]
        )
        uses = seen.uses.to(torch.int64)
        self.uses_k += uses.sum(0)
        every = self.config.count_steps // _BUCKETS
        bucket = step // every % _BUCKETS
        if step % every == 0:
            self.counts[bucket] = 0
        self.counts[bucket] += uses

    def _remember(self, latents_nc: Tensor, is_clip_n: Tensor) -> None:
        window = len(self.latents_wc)
        # More than the window would have two latents for a place.
        latents_nc, is_clip_n = latents_nc[-window:], is_clip_n[-window:]
        places_n = (self.place + torch.arange(len(latents_nc), device=is_clip_n.device)) % window
        self.latents_wc[places_n] = latents_nc.to(self.latents_wc)
        self.is_clip_w[places_n] = is_clip_n
        self.place = (self.place + len(latents_nc)) % window
        self.filled = min(window, self.filled + len(latents_nc))

    def usage(self) -> dict[str, float]:
        """Share of the codes in use and their perplexity over the last `count_steps` steps."""
        found = {"": self.counts.sum((0, 1))}
        by_kind = self.counts.sum(0)
        if by_kind.any(1).all():
            found |= {f"_{kind}": by_kind[index] for index, kind in enumerate(KINDS)}
        measured = {suffix: usage_of(uses_k) for suffix, uses_k in found.items()}
        return {
            **{f"codebook_usage{suffix}": usage.share for suffix, usage in measured.items()},
            **{f"codebook_perplexity{s}": usage.perplexity for s, usage in measured.items()},
        }

    def place_codes(self, step: int) -> Tensor:
        """Place all codes by k-means over the remembered latents; returns their numbers."""
        draw = self._generator(step)
        self._set(
            fit(self._draw(len(self.uses_k), draw), self._latents(), self.config.kmeans_rounds)
        )
        self.counts.zero_()  # of codes that were elsewhere
        return torch.arange(len(self.uses_k))

    def has_clips(self) -> bool:
        """Whether there are latents of clips among the remembered ones."""
        return bool(self.is_clip_w[: self.filled].any())

    def place_new_codes(self, step: int, kept: int) -> Tensor:
        """Place the codes from number `kept` on where clips need them; returns their numbers.

        Of the remembered latents of images all but 0.2% at most keep their code. Needs latents of
        clips: `has_clips`.
        """
        is_clip_w = self.is_clip_w[: self.filled]
        images, clips = self._latents()[~is_clip_w], self._latents()[is_clip_w]
        old_kc, count = self._book_kc[:kept], len(self.uses_k) - kept
        config, draw = self.config, self._generator(step)
        new_kc = fit_beside(old_kc, count, clips, images, config.kmeans_rounds, draw, config.margin)
        self._set(torch.cat((old_kc, new_kc)))
        return torch.arange(kept, len(self.uses_k))

    def _set(self, book_kc: Tensor) -> None:
        # k-means adds in an order that differs between devices: the first rank's is everyone's.
        dist.broadcast(book_kc, 0)
        self._book_kc.copy_(book_kc)
        self.uses_k.zero_()

    def is_restart_due(self) -> bool:
        """Whether so many latents came by since the last restart that an unused code is dead."""
        after = self.config.restart_after * len(self.uses_k)
        return bool(after and self.uses_k.sum() >= after)

    def restart(self, step: int) -> Tensor:
        """Move the codes unused since the last restart onto latents; returns their numbers."""
        unused = (self.uses_k == 0).nonzero().flatten()
        self.uses_k.zero_()
        if len(unused) and self.filled:
            self._book_kc[unused] = self._draw(len(unused), self._generator(step))
        return unused

    def _generator(self, step: int) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed * 1_000_003 + step)

    def _latents(self) -> Tensor:
        return self.latents_wc[: self.filled]

    def _draw(self, count: int, draw: torch.Generator) -> Tensor:
        """Remembered latents, with a share of clips' that does not depend on how many they are."""
        is_clip_w = self.is_clip_w[: self.filled].double().cpu()
        clips = is_clip_w.sum()
        if 0 < clips < len(is_clip_w):
            of_clips = self.clip_share / clips
            of_images = (1 - self.clip_share) / (len(is_clip_w) - clips)
            weights = torch.where(is_clip_w > 0, of_clips, of_images)
        else:
            weights = torch.ones_like(is_clip_w)
        # The largest keys u^(1/weight) are a weighted draw without replacement.
        keys = torch.rand(len(weights), generator=draw, dtype=torch.float64).log() / weights
        chosen = keys.topk(min(count, len(keys))).indices
        chosen = chosen.repeat(-(-count // len(chosen)))[:count]  # fewer latents than codes
        return self._latents()[chosen.to(self.latents_wc.device)]

    def tensors(self) -> State:
        return {
            "latents": self.latents_wc,
            "is_clip": self.is_clip_w.to(torch.uint8),
            "uses": self.uses_k,
            "counts": self.counts,
        }

    def load(self, tensors: State, filled: int, place: int) -> None:
        self.latents_wc.copy_(tensors["latents"])
        self.is_clip_w.copy_(tensors["is_clip"].bool())
        self.uses_k.copy_(tensors["uses"])
        self.counts.copy_(tensors["counts"])
        self.filled, self.place = filled, place
