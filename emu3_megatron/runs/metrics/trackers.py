"""Trackers outside the run's own files: TensorBoard and wandb."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from emu3_megatron.config.runs import RunConfig
from emu3_megatron.errors import InputError
from emu3_megatron.runs.metrics.offline import cut_offline_runs
from emu3_megatron.runs.metrics.writers import Writer

_UPLOAD_SECONDS = 120.0  # at the end of a run; what is left lies in its folder


def check_trackers(config: RunConfig) -> None:
    """Refuse a run that asks for a tracker that can't work: not installed, or without a key.

    Raises:
        InputError: that, in one line.
    """
    if config.tensorboard:
        try:
            import torch.utils.tensorboard  # noqa: F401
        except ImportError:
            raise InputError(
                "run.tensorboard=true needs tensorboard: pip install 'emu3-megatron[tracking]'"
            ) from None
    if config.wandb:
        try:
            import wandb
        except ImportError:
            raise InputError(
                "run.wandb needs wandb: pip install 'emu3-megatron[tracking]'"
            ) from None
        if _is_online(wandb) and not _has_key(wandb.setup().settings):
            raise InputError(
                f"run.wandb={config.wandb} needs a key of wandb, and there is none: run `wandb "
                "login`, or set WANDB_API_KEY or WANDB_MODE=offline"
            )


def _is_online(wandb: Any) -> bool:
    return wandb.setup().settings.mode not in ("offline", "dryrun", "disabled")


def _has_key(settings: Any) -> bool:
    """Whether there is a key at all; whether it is a good one, the server alone knows."""
    from requests.utils import get_netrc_auth  # requests comes with wandb

    return bool(
        settings.api_key
        or getattr(settings, "identity_token_file", None)
        or get_netrc_auth(settings.base_url)
    )


class TensorBoard(Writer):
    """Event files. Those of an earlier start are hidden past the step that a run resumes from."""

    def __init__(self, folder: Path, resumed_step: int):
        from torch.utils.tensorboard import SummaryWriter

        # Without a step to purge from, TensorBoard would show steps that were taken anew twice.
        self.writer = SummaryWriter(str(folder), purge_step=resumed_step + 1)

    def write(self, row: dict[str, Any]) -> None:
        for name, value in row.items():
            if name != "step":
                self.writer.add_scalar(name, value, row["step"])
        self.writer.flush()  # a run that is killed keeps its last rows

    def show(self, step: int, images: Mapping[str, Path]) -> None:
        for caption, path in images.items():
            pixels = np.asarray(Image.open(path).convert("RGB"))
            self.writer.add_image(f"samples/{caption}", pixels, step, dataformats="HWC")

    def close(self) -> None:
        self.writer.close()


class WandB(Writer):
    """One wandb run a run folder, resumed with it.

    Steps past the one that the run resumes from are taken anew, so wandb must forget them: the
    server by wandb's rewind, where it can, and files that were written offline by being cut. A
    server that cannot rewind keeps the first values of such steps.

    Args:
        last_row: the last step of which `metrics.jsonl` keeps a row.
    """

    def __init__(self, config: RunConfig, recipe: Any, last_row: int):
        import wandb

        self.image = wandb.Image
        id = hashlib.sha256(str(config.dir.resolve()).encode()).hexdigest()[:16]
        cut_offline_runs(config.dir / "wandb", id, last_row)
        settings = {
            "project": config.wandb,
            "name": config.dir.name,
            "id": id,
            "dir": config.dir,
            "config": recipe,
            "settings": {"finish_timeout": _UPLOAD_SECONDS, "finish_timeout_raises": True},
        }
        self.run = _rewound(wandb, settings, last_row) or wandb.init(**settings, resume="allow")

    def write(self, row: dict[str, Any]) -> None:
        self.run.log({k: v for k, v in row.items() if k != "step"}, step=row["step"])

    def show(self, step: int, images: Mapping[str, Path]) -> None:
        shown = [self.image(str(path), caption=caption) for caption, path in images.items()]
        self.run.log({"samples": shown}, step=step)

    def close(self) -> None:
        self.run.finish()


def _rewound(wandb: Any, settings: dict[str, Any], step: int) -> Any:
    """The server's run, without what it has past a step; None if the server cannot do that."""
    if not step or not _is_online(wandb):
        return None
    try:
        return wandb.init(**settings, resume_from=f"{settings['id']}?_step={step}")
    except Exception:
        wandb.teardown()  # it would take the run for one in use
        return None
