"""A decode step: plain torch operations over the decoder's weights and the KV pool."""

import torch
import torch.distributed as dist
from emu3_kernels.decode_attention import Positions, decode_attention
from emu3_kernels.weight_only import QuantizedWeight
from emu3_kernels.weight_only import linear as eight_bit_linear
from torch import Tensor
from torch.nn.functional import linear, rms_norm, silu

from emu3_megatron.generation.pool import KVPool
from emu3_megatron.generation.weights import DecodeWeights, LayerWeights
from emu3_megatron.parallel.groups import tensor_group, tensor_rank


class DecodeForward:
    """Reads tokens into the pool and computes the states behind them.

    It computes what the decoder computes in evaluation, without autograd's and Megatron's module
    calls, which cost more than the arithmetic of a single token.
    """

    def __init__(self, weights: DecodeWeights, pool: KVPool):
        self.weights = weights
        self.pool = pool
        self._group = tensor_group()
        self._cosines_p11d, self._sines_p11d = _rotary_tables(weights, pool.layers[0].shape[3])

    def __call__(
        self, tokens_bw: Tensor, positions_bw: Tensor, first_row: int, longest: int
    ) -> Tensor:
        """Read w tokens of each of b neighbouring rows.

        Args:
            tokens_bw: int64.
            positions_bw: int64, of each token in its row; a token sees its row up to itself.
            first_row: of the pool.
            longest: 1 + the largest position.

        Returns:
            States behind the last norm, [b, w, h].
        """
        weights = self.weights
        on_gpu = positions_bw.device.type == "cuda"
        positions = positions_bw if on_gpu else Positions(positions_bw)
        rotation = self._rotation(positions_bw)
        places_n = self.pool.places(first_row, positions_bw)
        hidden_bwh = self._embed(tokens_bw)
        for number, layer in enumerate(weights.layers):
            normed_bwh = self._norm(hidden_bwh, layer.attention_norm_h)
            qkv_bwgnd = self._qkv(normed_bwh, layer, rotation)
            self.pool.write(number, places_n, qkv_bwgnd[..., -2:, :].reshape(len(places_n), -1))
            keys, values = self.pool.read(number, first_row, len(tokens_bw))
            attended_bwhd = decode_attention(
                qkv_bwgnd[..., :-2, :].flatten(2, 3),
                keys,
                values,
                positions,
                weights.head_dim**-0.5,
                longest=longest,
            )
            attended_bwo = attended_bwhd.flatten(2)
            hidden_bwh = hidden_bwh + self._sum(_multiply(attended_bwo, layer.projection_ho))
            normed_bwh = self._norm(hidden_bwh, layer.mlp_norm_h)
            gate_bwf, up_bwf = _multiply(normed_bwh, layer.gate_up_oh).chunk(2, -1)
            hidden_bwh = hidden_bwh + self._sum(
                _multiply(silu(gate_bwf).mul_(up_bwf), layer.down_ho)
            )
        return self._norm(hidden_bwh, weights.final_norm_h)

    def logits(self, hidden_bh: Tensor, begin: int, end: int) -> Tensor:
        """fp32 logits of the tokens from `begin` to before `end`, [b, end - begin]."""
        head_vh = self.weights.head_vh
        if self._group.size() == 1:
            return _multiply(hidden_bh, head_vh[begin:end]).float()
        ours = tensor_rank() * len(head_vh)
        first, last = (min(max(i - ours, 0), len(head_vh)) for i in (begin, end))
        # Each rank writes the columns whose rows it holds; the sum puts them together.
        logits_bv = hidden_bh.new_zeros(len(hidden_bh), end - begin)
        columns = slice(first + ours - begin, last + ours - begin)
        logits_bv[:, columns] = _multiply(hidden_bh, head_vh[first:last])
        return self._sum(logits_bv).float()

    def _embed(self, tokens_bw: Tensor) -> Tensor:
        table_vh = self.weights.embedding_vh
        if self._group.size() == 1:
            return table_vh[tokens_bw]
        ours_bw = tokens_bw - tensor_rank() * len(table_vh)
        is_ours_bw = (ours_bw >= 0) & (ours_bw < len(table_vh))
        embedded_bwh = table_vh[ours_bw.clamp(0, len(table_vh) - 1)]
        return self._sum(embedded_bwh.mul_(is_ours_bw[..., None]))

    def _norm(self, hidden_bwh: Tensor, weight_h: Tensor) -> Tensor:
        return rms_norm(hidden_bwh, weight_h.shape, weight_h, self.weights.epsilon)

    def _qkv(
        self, normed_bwh: Tensor, layer: LayerWeights, rotation: tuple[Tensor, Tensor]
    ) -> Tensor:
        """Of each KV head rotated queries, rotated key, value: [b, w, kv_heads, queries + 2, d]."""
        weights = self.weights
        shape = (weights.kv_heads, weights.queries + 2, weights.head_dim)
        qkv_bwgnd = _multiply(normed_bwh, layer.qkv_oh).unflatten(-1, shape)
        cosines_bw1nd, sines_bw1nd = rotation
        swapped_bwgnd = qkv_bwgnd.roll(weights.head_dim // 2, -1)
        return torch.addcmul(qkv_bwgnd * cosines_bw1nd, swapped_bwgnd, sines_bw1nd)

    def _rotation(self, positions_bw: Tensor) -> tuple[Tensor, Tensor]:
        """What queries, key and value are turned by, [b, w, 1, queries + 2, d]; values by nothing.

        One operation for all three is cheaper than to take them apart.
        """
        turned = (-1, -1, -1, self.weights.queries + 1, -1)
        cosines_bw11d = self._cosines_p11d[positions_bw]
        sines_bw11d = self._sines_p11d[positions_bw]
        return (
            torch.cat([cosines_bw11d.expand(turned), torch.ones_like(cosines_bw11d)], 3),
            torch.cat([sines_bw11d.expand(turned), torch.zeros_like(sines_bw11d)], 3),
        )

    def _sum(self, partial: Tensor) -> Tensor:
        """The sum over tensor parallel ranks, in place."""
        if self._group.size() > 1:
            dist.all_reduce(partial, group=self._group)
        return partial


def _rotary_tables(weights: DecodeWeights, places: int) -> tuple[Tensor, Tensor]:
    """Cosines, and sines with the sign of rotate-half, [places, 1, 1, d] in the weights' dtype."""
    dim, device = weights.head_dim, weights.device
    exponents = torch.arange(0, dim, 2, device=device, dtype=torch.float32) / dim
    positions_p1 = torch.arange(places, device=device)[:, None]
    angles_pd = positions_p1 * weights.rope_base**-exponents
    cosines_pd = torch.cat([angles_pd.cos(), angles_pd.cos()], -1)
    sines_pd = torch.cat([-angles_pd.sin(), angles_pd.sin()], -1)
    shaped = lambda table_pd: table_pd[:, None, None].to(weights.dtype)
    return shaped(cosines_pd), shaped(sines_pd)


def _multiply(x: Tensor, weight_oi: Tensor | QuantizedWeight) -> Tensor:
    """`x @ weight.T`, [..., o], by the way that is fastest for so few rows."""
    if isinstance(weight_oi, QuantizedWeight):
        return eight_bit_linear(x, weight_oi)
    if not _suits_turned(x, weight_oi):
        return linear(x, weight_oi)
    y_on = weight_oi @ x.reshape(-1, x.shape[-1]).T
    return y_on.T.contiguous().view(*x.shape[:-1], -1)


def _suits_turned(x: Tensor, weight_oi: Tensor) -> bool:
    """Whether `weight @ x.T` is faster: MKL reads the weight up to four times as fast."""
    if x.device.type != "cpu" or x.dtype != torch.float32:
        return False
    rows, (outputs, inputs) = x.numel() // x.shape[-1], weight_oi.shape
    is_large = outputs * inputs >= 1 << 20 and outputs > inputs
    return rows == 2 or (2 < rows <= 8 and is_large)
