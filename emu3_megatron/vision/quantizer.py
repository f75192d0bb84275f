"""The codebook: latents to the index of the nearest code vector, and back."""

import torch
from emu3_kernels.nearest_code import nearest_code
from torch import Tensor, nn

_EXACT = (torch.float32, torch.float64)


class VectorQuantizer(nn.Module):
    def __init__(self, codebook_size: int, embed_dim: int):
        super().__init__()
        self.embedding = nn.Embedding(codebook_size, embed_dim)
        nn.init.uniform_(self.embedding.weight, -1 / codebook_size, 1 / codebook_size)

    @torch.no_grad()
    def nearest(self, latents_bcfhw: Tensor) -> Tensor:
        """The nearest code by L2 distance: codes [b, f, h, w], int64; of equal ones the lowest.

        Raises:
            RuntimeError: latents or code vectors are bf16 or fp16, in which a third of the codes
                would be others.
        """
        book_kc = self.embedding.weight
        if latents_bcfhw.dtype != book_kc.dtype or book_kc.dtype not in _EXACT:
            raise RuntimeError(
                f"latents are {latents_bcfhw.dtype}, code vectors {book_kc.dtype}: the search needs"
                " both in fp32 or fp64; keep the tokenizer in fp32 and use torch.autocast"
            )
        latents_bfhwc = latents_bcfhw.movedim(1, -1)
        rows_nc = latents_bfhwc.reshape(-1, latents_bfhwc.shape[-1])
        return nearest_code(rows_nc, book_kc).view(latents_bfhwc.shape[:-1])

    def lookup(self, codes_bfhw: Tensor) -> Tensor:
        """The code vectors [b, c, f, h, w]."""
        return self.embedding(codes_bfhw).movedim(-1, 1)
