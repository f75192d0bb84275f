"""The codebook: latents to the index of the nearest code vector, and back."""

import torch
from torch import Tensor, nn

_DISTANCES_AT_ONCE = 2**25  # 128 MiB of fp32: bounds the memory at 32,768 codes


class VectorQuantizer(nn.Module):
    def __init__(self, codebook_size: int, embed_dim: int):
        super().__init__()
        self.embedding = nn.Embedding(codebook_size, embed_dim)
        nn.init.uniform_(self.embedding.weight, -1 / codebook_size, 1 / codebook_size)

    @torch.no_grad()
    def nearest(self, latents_bcfhw: Tensor) -> Tensor:
        """The nearest code by L2 distance: codes [b, f, h, w], int64."""
        latents_bfhwc = latents_bcfhw.movedim(1, -1)
        rows_nc = latents_bfhwc.reshape(-1, latents_bfhwc.shape[-1]).float()
        book_kc = self.embedding.weight.float()
        rows_at_once = max(1, _DISTANCES_AT_ONCE // len(book_kc))
        codes_n = torch.cat([_nearest(rows, book_kc) for rows in rows_nc.split(rows_at_once)])
        return codes_n.view(latents_bfhwc.shape[:-1])

    def lookup(self, codes_bfhw: Tensor) -> Tensor:
        """The code vectors [b, c, f, h, w]."""
        return self.embedding(codes_bfhw).movedim(-1, 1)


def _nearest(rows_nc: Tensor, book_kc: Tensor) -> Tensor:
    # Expanded, in the order of the published code: near ties must fall to the same side.
    distance_nk = rows_nc.square().sum(1, keepdim=True) + book_kc.square().sum(1)
    return distance_nk.sub_(rows_nc @ book_kc.T, alpha=2).argmin(1)
