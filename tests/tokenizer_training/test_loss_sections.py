"""What of the losses may change when a run resumes."""

import pytest

from emu3_megatron.config.changes import changes, refuse_changes
from emu3_megatron.config.tokenizer_losses import AdversarialConfig, LossConfig
from emu3_megatron.errors import InputError


def resumed(before, after, accept=True):
    refuse_changes("run", list(changes(before, after)), accept)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"l1": 1}, "l1: 0.0 → 1.0"),
        ({"perceptual": {"kind": "gradient_ssim"}}, "perceptual.kind: none → gradient_ssim"),
        ({"entropy": {"temperature": 1}}, "entropy: None → {'temperature': 1.0}"),
    ],
)
def test_another_loss_set_is_refused(changed, named):
    with pytest.raises(InputError, match=f"cannot change within a run: {named}"):
        resumed(LossConfig(), LossConfig.model_validate(changed))


@pytest.mark.parametrize("changed", [{"channels": 32}, {"layers": 2}, {"norm": "none"}])
def test_another_discriminator_is_refused(changed):
    with pytest.raises(InputError, match="cannot change within a run"):
        resumed(AdversarialConfig(), AdversarialConfig.model_validate(changed))


def test_weights_change_where_the_user_accepts_it():
    before, after = AdversarialConfig(), AdversarialConfig(weight=0.5)

    resumed(before, after)
    with pytest.raises(InputError, match="add --accept"):
        resumed(before, after, accept=False)


def test_files_of_lpips_may_lie_elsewhere():
    before, after = (
        LossConfig.model_validate(
            {"perceptual": {"kind": "lpips", "weights": f"{folder}/v.pth", "heads": "h.pth"}}
        )
        for folder in ("here", "there")
    )

    resumed(before, after, accept=False)
