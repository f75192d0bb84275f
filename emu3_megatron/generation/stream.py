"""Feeds tokens to the decoder over a KV cache, and reads the logits of the next ones."""

from collections.abc import Sequence

import numpy as np
import torch
from megatron.core.tensor_parallel import reduce_from_tensor_model_parallel_region

from emu3_megatron.generation.raster import Choice
from emu3_megatron.model import Decoder, Inputs, KVCache, SequenceLayout
from emu3_megatron.parallel.groups import tensor_rank
from emu3_megatron.vocabulary import Vocabulary

_COLUMNS_AT_ONCE = 1024  # bounds the mask of a long prompt: rows x these x all columns so far


class Stream:
    """Rows that grow together, a column at a time, over one KV cache.

    Prompts are padded on the left, so that all rows end in the same column. Padding is seen by no
    token, and positions count from each row's own first token.

    Args:
        prompts: integers, one array a row, none empty.
        max_tokens: columns that may be fed after the prompts.
    """

    def __init__(
        self,
        decoder: Decoder,
        vocabulary: Vocabulary,
        prompts: Sequence[np.ndarray],
        max_tokens: int,
    ):
        self.decoder = decoder
        self.vocabulary = vocabulary
        self.device = decoder.head.weight.device
        width = max(len(prompt) for prompt in prompts)
        padding_b1 = torch.tensor([[width - len(prompt)] for prompt in prompts], device=self.device)
        self.cache = KVCache(width + max_tokens)
        self.columns_k = torch.arange(self.cache.capacity, device=self.device)
        self.positions_bk = (self.columns_k - padding_b1).clamp(min=0)
        self.is_token_bk = self.columns_k >= padding_b1
        self._ids: dict[Choice, torch.Tensor] = {}
        pad = lambda row: np.pad(row, (width - len(row), 0), constant_values=vocabulary.pad)
        self.feed(np.stack([pad(prompt) for prompt in prompts]))

    def feed(self, tokens_bs: np.ndarray | Sequence[Sequence[int]]) -> None:
        """Append columns of tokens."""
        tokens = torch.as_tensor(tokens_bs, dtype=torch.int64, device=self.device)
        for piece_bs in tokens.split(_COLUMNS_AT_ONCE, dim=1):
            begin = self.cache.length
            end = begin + piece_bs.shape[1]
            layout = SequenceLayout(visible=self._visible(begin, end), cache=self.cache)
            self.inputs = Inputs(piece_bs, self.positions_bk[:, begin:end], layout)
            hidden_sbh = self.decoder(self.inputs, "hidden")
            self.cache.advance(end - begin)
        self.hidden_bh = hidden_sbh[-1]

    def _visible(self, begin: int, end: int) -> torch.Tensor:
        """Bool [b, 1, queries, keys]: earlier tokens of the row, and each column itself.

        Padding too sees itself: a softmax over nothing would be NaN.
        """
        queries_q1, keys_k = self.columns_k[begin:end, None], self.columns_k[:end]
        earlier_bqk = self.is_token_bk[:, None, :end] & (keys_k < queries_q1)
        return (earlier_bqk | (keys_k == queries_q1))[:, None]

    def ids(self, choice: Choice) -> torch.Tensor:
        """Tokens of a choice, int64 [n]."""
        if choice not in self._ids:
            self._ids[choice] = torch.from_numpy(choice.ids(self.vocabulary)).to(self.device)
        return self._ids[choice]

    def logits(self, choice: Choice, rows: Sequence[int]) -> torch.Tensor:
        """fp32 logits of a choice's tokens after the last column, [rows, n]."""
        hidden_bh = self.hidden_bh[rows]
        if choice is Choice.CODE:
            return self._code_logits(hidden_bh).float()
        logits_bsv = self.decoder.head(hidden_bh[None], self.inputs, "logits")
        return logits_bsv[:, 0, self.ids(choice)].float()

    def _code_logits(self, hidden_bh: torch.Tensor) -> torch.Tensor:
        """The head on the rows of codes alone: a fifth of it at Emu3's vocabulary."""
        weight_vh = self.decoder.head.weight
        ours = tensor_rank() * len(weight_vh)
        first = self.vocabulary.first_code - ours
        begin, end = (min(max(i, 0), len(weight_vh)) for i in (first, self.vocabulary.size - ours))
        # Each rank has written the columns whose rows it holds; the sum puts them together.
        logits_bv = hidden_bh.new_zeros(len(hidden_bh), self.vocabulary.num_codes)
        logits_bv[:, begin - first : end - first] = hidden_bh @ weight_vh[begin:end].T
        return reduce_from_tensor_model_parallel_region(logits_bv)
