"""Adversarial loss terms, one value for each sample: hinge, and LeCam's regularisation.

They take the logits of every discriminator that saw the samples, a list of [b, n], and give the
mean over discriminators: a clip, seen by two, counts as much as an image.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from emu3_megatron.tokenizer_training.losses.terms import at_least_fp32, mean_b

NETWORKS = 2  # the discriminator of frames, and that of clips: their order in every list

Logits = Sequence[Tensor]


def generator_term(fake: Logits) -> Tensor:
    """What the tokenizer is trained with: it falls as rebuilt pixels pass for true ones."""
    return _mean([-at_least_fp32(logits) for logits in fake])


def discriminator_term(real: Logits, fake: Logits) -> Tensor:
    """The hinge loss: 0 where true pixels are above 1 and rebuilt ones below -1."""
    return _mean(
        [
            0.5 * ((1 - at_least_fp32(one)).relu() + (1 + at_least_fp32(other)).relu())
            for one, other in zip(real, fake, strict=True)
        ]
    )


@torch.no_grad()
def logit_sums(real: Logits, fake: Logits) -> Tensor:
    """What `LeCam.update` needs of a group, to be added up over groups and ranks.

    Returns:
        [3, networks], fp64: the sum over samples of their mean logits, true and rebuilt; and the
        number of samples.
    """
    sums = torch.zeros(3, NETWORKS, dtype=torch.float64, device=real[0].device)
    for index, (one, other) in enumerate(zip(real, fake, strict=True)):
        sums[0, index] = mean_b(one.double()).sum()
        sums[1, index] = mean_b(other.double()).sum()
        sums[2, index] = len(one)
    return sums


class LeCam(nn.Module):
    """Keeps the logits of either side near the average of the other (arXiv 2104.03310).

    The averages move by a step, over all ranks, and are buffers: a checkpoint holds them.
    """

    means: Tensor  # [2, networks]: of true and of rebuilt pixels
    updates: Tensor  # [networks]

    def __init__(self, decay: float = 0.999):
        super().__init__()
        self.decay = decay
        self.register_buffer("means", torch.zeros(2, NETWORKS, dtype=torch.float64))
        self.register_buffer("updates", torch.zeros(NETWORKS, dtype=torch.int64))

    def forward(self, real: Logits, fake: Logits) -> Tensor:
        """[b]; 0 for a discriminator that has no averages yet."""
        values = []
        for index, (one, other) in enumerate(zip(real, fake, strict=True)):
            one, other = at_least_fp32(one), at_least_fp32(other)
            mean_real, mean_fake = self.means[:, index].to(one.dtype)
            value = (one - mean_fake).relu().square() + (mean_real - other).relu().square()
            values.append(value * (self.updates[index] > 0))
        return _mean(values)

    @torch.no_grad()
    def update(self, sums: Tensor) -> None:
        """Move the averages by one step.

        Args:
            sums: `logit_sums` of the step, added up over all groups and ranks. A discriminator
                without samples keeps its averages.
        """
        seen = sums[2] > 0
        means = sums[:2] / sums[2].clamp_min(1)
        kept = torch.where(self.updates > 0, self.decay, 0.0).to(means)  # the first counts whole
        self.means.copy_(torch.where(seen, kept * self.means + (1 - kept) * means, self.means))
        self.updates += seen


def _mean(values: Sequence[Tensor]) -> Tensor:
    return torch.stack([mean_b(value) for value in values]).mean(0)
