"""Moves BatchNorm's statistics by those of a whole step.

BatchNorm stands in its eval mode all through training: the network is trained as the function that
it will be used as, and what a sample gives does not depend on the samples beside it. Its running
statistics follow what went into it in a step, over all groups and ranks.
"""

import torch
from torch import Tensor, nn

_MOMENTUM = 0.1  # torch's own


class BatchNormStatistics:
    """Collects the sums that move the statistics of a network's BatchNorm layers."""

    def __init__(self, network: nn.Module):
        self.layers = [m for m in network.modules() if isinstance(m, nn.BatchNorm3d)]
        self.is_on = False
        self._sums: list[Tensor] = []
        for index, layer in enumerate(self.layers):
            layer.register_forward_pre_hook(self._collector(index))

    @property
    def shape(self) -> tuple[int, int]:
        """Of the sums of a step: number, sum and sum of squares of each channel of each layer."""
        return (len(self.layers), 1 + 2 * max(layer.num_features for layer in self.layers))

    def start(self) -> None:
        """Collect from now on, from nothing."""
        self.is_on = True
        device = self.layers[0].weight.device
        self._sums = [
            torch.zeros(self.shape[1], dtype=torch.float64, device=device) for _ in self.layers
        ]

    def stop(self) -> Tensor:
        """The sums since `start`."""
        self.is_on = False
        return torch.stack(self._sums)

    def _collector(self, index: int):  # type: ignore[no-untyped-def]
        def collect(layer: nn.BatchNorm3d, inputs: tuple[Tensor]) -> None:
            if not self.is_on:
                return
            x = inputs[0].detach().double().movedim(1, 0).flatten(1)
            count = torch.tensor([x.shape[1]], dtype=x.dtype, device=x.device)
            sums = torch.cat((count, x.sum(1), x.square().sum(1)))
            self._sums[index][: len(sums)] += sums

        return collect

    @torch.no_grad()
    def move(self, sums: Tensor) -> None:
        """Move the running statistics by a step.

        Args:
            sums: of the step over all ranks.
        """
        for layer, row in zip(self.layers, sums, strict=True):
            count, channels = row[0], layer.num_features
            if count < 2:
                continue
            mean = row[1 : 1 + channels] / count
            spread = row[1 + channels : 1 + 2 * channels] - count * mean.square()
            assert layer.running_mean is not None
            assert layer.running_var is not None
            assert layer.num_batches_tracked is not None
            layer.num_batches_tracked += 1
            # The first steps count as much as one another.
            share = max(_MOMENTUM, 1 / layer.num_batches_tracked.item())
            layer.running_mean.lerp_(mean.to(layer.running_mean), share)
            layer.running_var.lerp_((spread / (count - 1)).to(layer.running_var), share)
