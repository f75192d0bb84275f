"""The engine on Megatron-core: tensor, sequence, context and data parallel."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from megatron.core.distributed import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from emu3_megatron.checkpoints.state import Saved, State
from emu3_megatron.config.engines import MegatronConfig
from emu3_megatron.config.training import Recompute
from emu3_megatron.data.batches import Batch
from emu3_megatron.model import Decoder, build_decoder
from emu3_megatron.model.decoder import view_for_inference
from emu3_megatron.model.opening import load_decoder
from emu3_megatron.training.engines import states
from emu3_megatron.training.engines.average import WeightAverage
from emu3_megatron.training.engines.optimizer import (
    build_optimizer,
    gradient_norm,
    set_rate,
    take_step,
)
from emu3_megatron.training.engines.parameters import freeze
from emu3_megatron.training.interfaces import EngineSetting, Sums


class MegatronEngine:
    """Megatron's schedule, gradient buffers and AdamW around our decoder.

    Attributes:
        live: the bare decoder; its weights are those that move.
        model: the decoder as Megatron's schedule runs it, with gradient buffers.
    """

    def __init__(self, section: MegatronConfig, setting: EngineSetting):
        self.setting = setting
        # On the CPU, whose products know no output type, it would gain nothing.
        self.live = _build(setting, setting.seed, torch.cuda.is_available(), setting.recompute)
        freeze(self.live, setting.optimizer.freeze, setting.recompute != "none")
        self.model = DistributedDataParallel(
            self.live.config,
            DistributedDataParallelConfig(
                grad_reduce_in_fp32=True,
                use_distributed_optimizer=setting.parallel.distributed_optimizer,
                overlap_grad_reduce=setting.parallel.overlap_grad_reduce,
                overlap_param_gather=setting.parallel.overlap_param_gather,
            ),
            self.live,
        )
        self.optimizer = build_optimizer(setting, self.model)
        self.average: WeightAverage | None = None
        if average := setting.optimizer.average:
            divided = setting.parallel.distributed_optimizer
            self.average = WeightAverage(self.live, self.optimizer, average.decay, divided)
        self.live.config.grad_scale_func = self.optimizer.scale_loss
        self.live.config.no_sync_func = self.model.no_sync
        self.live.config.finalize_model_grads_func = _finalize_gradients
        self.run_schedule = get_forward_backward_func()
        self.weights_are_whole = True
        self.overlaps_tensor = False

    def forward_backward(
        self, batches: Sequence[Batch], forward: Callable[[Any, Batch], tuple[Tensor, Sums]]
    ) -> list[Sums]:
        """See `Engine`."""
        self.model.train()
        self.model.zero_grad_buffer()
        self.optimizer.zero_grad()

        def forward_step(
            iterator: Iterator[Batch], model: torch.nn.Module
        ) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, Tensor, Sums]]]:
            loss, sums = forward(model, next(iterator))
            return loss, lambda loss: (loss, torch.tensor(1, dtype=torch.int), sums)

        if self.setting.parallel.overlap_tensor and not self.overlaps_tensor:
            self._share_buffers(batches[0].tokens.numel())
        self.weights_are_whole = True  # each module waits for its own before it computes
        rows, length = batches[0].tokens.shape
        return self.run_schedule(
            forward_step_func=forward_step,
            data_iterator=iter(batches),
            model=[self.model],
            num_microbatches=len(batches),
            seq_length=length,
            micro_batch_size=rows,
            forward_only=False,
        )

    def _share_buffers(self, tokens: int) -> None:
        """Make the buffers that TransformerEngine exchanges parts of products through.

        Never run: no machine with two GPUs was at hand.
        """
        from transformer_engine.pytorch.module.base import initialize_ub

        setting = self.setting
        initialize_ub(
            shape=[tokens, setting.model.hidden],
            tp_size=setting.parallel.tensor,
            use_fp8=setting.backend.fp8 != "none",
            bootstrap_backend="nccl",
        )
        self.overlaps_tensor = True

    def grad_norm(self) -> float:
        """See `Engine`."""
        return gradient_norm(self.optimizer)

    def update(self, grad_norm: float, lr: float) -> None:
        """See `Engine`."""
        set_rate(self.optimizer, lr)
        take_step(self.optimizer, grad_norm)
        self.weights_are_whole = not self.setting.parallel.overlap_param_gather
        if self.average:
            self.average.update()

    @cached_property
    def _view(self) -> Decoder:
        setting = self.setting
        return view_for_inference(self.live, setting.model, setting.parallel, setting.backend)

    @contextmanager
    def decoder(self) -> Iterator[Decoder]:
        """See `Engine`."""
        self._gather_weights()
        with torch.no_grad():
            yield self._view

    def _gather_weights(self) -> None:
        """Gather the weights that the last update moved, where the next forward pass would."""
        if not self.weights_are_whole:
            self.model.start_param_sync(force_sync=True)
            self.weights_are_whole = True

    def frozen(self, checkpoint: Path) -> Decoder:
        """See `Engine`."""
        return frozen_decoder(self.setting, checkpoint)

    def start_from(self, checkpoint: Path) -> None:
        """See `Engine`."""
        self._gather_weights()
        load_decoder(checkpoint, self.live)
        self.optimizer.reload_model_params()
        if self.average:
            self.average.restart()

    def state_dict(self, saved: Saved | None = None) -> State:
        """Weights and optimizer states, as Megatron describes them."""
        self._gather_weights()
        if saved is None:
            average = {"average": self.average.state_dict()} if self.average else {}
            return states.saved_state(self.live, self.optimizer) | average
        state = states.template(self.live, self.optimizer, saved.path)
        if self.average and states.has_average(saved.path):
            state["average"] = self.average.template()
        return state

    def load_state_dict(self, state: State) -> None:
        states.load(self.live, self.optimizer, state)
        if self.average and "average" in state:
            self.average.load_state_dict(state["average"])
        elif self.average:  # it is kept from here on
            self.average.restart()


def frozen_decoder(setting: EngineSetting, checkpoint: Path) -> Decoder:
    """What `MegatronEngine.frozen` returns, without an engine: no gradients, no optimizer.

    It computes as the decoder that is trained, operation by operation: in sequence parallel too,
    where sums over ranks are taken in another way.
    """
    decoder = _build(setting, seed=None)
    load_decoder(checkpoint, decoder)
    return decoder.eval().requires_grad_(False)


def _build(
    setting: EngineSetting,
    seed: int | None,
    into_main_grad: bool = False,
    recompute: Recompute = "none",
) -> Decoder:
    return build_decoder(
        setting.model,
        setting.parallel,
        seed=seed,
        bf16=setting.precision == "bf16",
        recompute=recompute,
        backend=setting.backend,
        into_main_grad=into_main_grad,
    )


def _finalize_gradients(model: list[torch.nn.Module], num_tokens: Any, **kwargs: Any) -> None:
    """Sum gradients over ranks. They are already divided by the global weight, not by tokens."""
    finalize_model_grads(model, None, **kwargs)
