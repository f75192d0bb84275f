"""Places and moves the codes of the codebook in training, so that every code is used.

A code that no latent is nearest to gets no gradient and stays dead, and a fresh codebook is nearly
all dead. So the codes are placed by k-means where the latents are, and codes unused for a while are
moved onto latents seen lately. Every choice comes from one seeded generator.
"""

from collections import deque

import torch
from torch import Tensor

from emu3_megatron.vision.quantizer import VectorQuantizer

_KMEANS_ROUNDS = 10
_LATENTS_PER_CODE = 8  # how many latents are remembered


class CodebookKeeper:
    def __init__(self, quantizer: VectorQuantizer, seed: int):
        self.quantizer = quantizer
        self._generator = torch.Generator().manual_seed(seed)
        self._latents: deque[Tensor] = deque()
        self._uses_k = torch.zeros(len(self._book_kc), dtype=torch.int64)

    @property
    def _book_kc(self) -> Tensor:
        return self.quantizer.embedding.weight.data

    def observe(self, latents_bcfhw: Tensor, codes_bfhw: Tensor) -> None:
        """Remember the latents of a step and the codes they were given."""
        self._latents.append(latents_bcfhw.detach().movedim(1, -1).flatten(0, -2))
        wanted = _LATENTS_PER_CODE * len(self._uses_k)
        while sum(map(len, self._latents)) - len(self._latents[0]) >= wanted:
            self._latents.popleft()
        self._uses_k += codes_bfhw.flatten().bincount(minlength=len(self._uses_k)).cpu()

    def usage(self) -> float:
        """The share of codes used in this round so far."""
        return (self._uses_k > 0).float().mean().item()

    def fit(self) -> None:
        """k-means over the remembered latents, from a random sample of them."""
        self._book_kc.copy_(self._draw(len(self._uses_k)))
        latents_nc = torch.cat(list(self._latents))
        for _ in range(_KMEANS_ROUNDS):
            codes_n = self.quantizer.nearest(latents_nc.T[None, :, :, None, None]).flatten()
            counts_k = codes_n.bincount(minlength=len(self._uses_k))
            sums_kc = torch.zeros_like(self._book_kc).index_add_(0, codes_n, latents_nc)
            used_k = counts_k > 0
            self._book_kc[used_k] = sums_kc[used_k] / counts_k[used_k, None]

    def end_round(self, revive: bool) -> None:
        """Count uses anew; with `revive`, first move the unused codes onto remembered latents."""
        if revive:
            dead_k = (self._uses_k == 0).to(self._book_kc.device)
            self._book_kc[dead_k] = self._draw(int(dead_k.sum()))
        self._uses_k.zero_()

    def _draw(self, count: int) -> Tensor:
        latents_nc = torch.cat(list(self._latents))
        chosen = torch.randint(len(latents_nc), (count,), generator=self._generator)
        return latents_nc[chosen.to(latents_nc.device)]
