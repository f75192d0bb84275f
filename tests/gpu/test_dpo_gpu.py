"""DPO's sums over documents on a GPU: those of the CPU, the same every time."""

import pytest
import torch
from support.given import batch_of, computed, dpo
from support.pairs import pairs_of_images
from support.tiny import VOCABULARY

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("variant", ["sigmoid", "normalized"])
def test_loss_gradients_and_sums_are_those_of_the_cpu(variant: str) -> None:
    objective = dpo(VOCABULARY, variant=variant, beta=2.0)
    batch = batch_of([pairs_of_images(4)[:2], pairs_of_images(4)[4:]])
    loss, gradient, sums = computed(objective, batch)

    once, again = (computed(objective, batch, device="cuda") for _ in range(2))

    torch.testing.assert_close(once[0].cpu(), loss, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(once[1].cpu(), gradient, rtol=1e-6, atol=1e-8)
    for name, value in sums.items():
        torch.testing.assert_close(once[2][name].cpu(), value, rtol=1e-9, atol=1e-9)
    assert torch.equal(once[0], again[0])
    assert torch.equal(once[1], again[1])
