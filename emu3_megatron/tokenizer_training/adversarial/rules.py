"""When the discriminators train, when the tokenizer feels them, and how strongly.

Functions of the step alone, from 1: a run counts one step for both networks, and a resumed one
goes on where it was.
"""

from torch import Tensor

from emu3_megatron.config.tokenizer_losses import AdversarialConfig

_LARGEST = 1e4
_SMALLEST_NORM = 1e-4


def discriminators_train(section: AdversarialConfig, step: int) -> bool:
    return step >= section.start


def generator_weight(section: AdversarialConfig, step: int) -> float:
    """The weight of the adversarial term: 0 until the discriminators have trained for a while."""
    return section.weight if step >= section.start + section.warmup else 0.0


def adaptive_weight(reconstruction_norm: Tensor, adversarial_norm: Tensor) -> Tensor:
    """What the adversarial gradient is multiplied by to be as long as that of the other terms.

    Args:
        reconstruction_norm: length, at the decoder's last layer, of the gradient of the pixel and
            perceptual terms, summed over all ranks.
        adversarial_norm: that of `generator_term`.
    """
    return (reconstruction_norm / (adversarial_norm + _SMALLEST_NORM)).clamp(0, _LARGEST).detach()
