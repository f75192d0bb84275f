"""Each patch: the fault without it, and that it is gone with it.

A test that fails on the fault says that the installed release no longer needs the patch.
"""

import logging
import multiprocessing
from types import SimpleNamespace

import pytest
import torch
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.extensions import transformer_engine as extension
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.tensor_parallel.layers import _initialize_affine_weight_cpu
from megatron.core.transformer import ModuleSpec
from megatron.core.transformer.mlp import MLP
from torch.distributed.checkpoint import DefaultLoadPlanner

from emu3_megatron import progress, upstream
from emu3_megatron.config import ModelConfig
from emu3_megatron.model import build_decoder


@pytest.fixture
def optimizer():
    """As much of a distributed optimizer as the patched method sees; one parameter of ones."""
    parameter = torch.nn.Parameter(torch.ones(3))
    adam = torch.optim.AdamW([parameter])
    adam.state[parameter] = {"step": torch.tensor(7.0), "exp_avg": torch.zeros(3)}
    return SimpleNamespace(
        parameter=parameter,
        optimizer=adam,
        config=SimpleNamespace(use_precision_aware_optimizer_no_fp8_or_ds_fp8=False),
        model_param_group_index_map={parameter: (0, 0)},
    )


SAVED = {"param": torch.full((3,), 2.0), "exp_avg": torch.full((3,), 3.0)}


def test_states_of_torchs_adam_cannot_be_loaded_without_the_patch(optimizer):
    upstream.copy_saved_states_only()
    unpatched = DistributedOptimizer._set_main_param_and_optimizer_states.__wrapped__

    with pytest.raises(KeyError, match="step"):
        torch.no_grad()(unpatched)(optimizer, optimizer.parameter, SAVED)


def test_saved_states_are_copied_and_the_step_is_left(optimizer):
    upstream.copy_saved_states_only()
    DistributedOptimizer._set_main_param_and_optimizer_states(optimizer, optimizer.parameter, SAVED)

    states = optimizer.optimizer.state[optimizer.parameter]
    assert optimizer.parameter.tolist() == [2.0] * 3
    assert states["exp_avg"].tolist() == [3.0] * 3
    assert states["step"] == 7


class ManagerStarted(Exception):
    pass


def results_queue(monkeypatch):
    """The queue of megatron-core's writer; fails where it would start a process for it."""

    def start(self):
        raise ManagerStarted

    monkeypatch.setattr(multiprocessing.context.BaseContext, "Manager", start)
    names = ("get_write_results_queue", "_get_write_results_queue")  # 0.19.2, 0.16.1
    (get,) = [getattr(filesystem_async, name) for name in names if hasattr(filesystem_async, name)]
    return get()


def test_the_writer_starts_a_manager_without_the_patch(monkeypatch):
    monkeypatch.setattr(filesystem_async, "_results_queue", None)

    with pytest.raises(ManagerStarted):
        results_queue(monkeypatch)


def test_the_writer_starts_no_manager(monkeypatch):
    monkeypatch.setattr(filesystem_async, "_results_queue", None)
    upstream.write_without_manager()

    assert results_queue(monkeypatch).empty()


@pytest.fixture
def logged():
    """Messages of megatron-core's transformer layer while a test runs."""
    found = []

    class Collect(logging.Handler):
        def emit(self, record):
            found.append(record.getMessage())

    logger = logging.getLogger("megatron.core.transformer.transformer_layer")
    collect = Collect()
    logger.addHandler(collect)
    yield found
    logger.removeHandler(collect)


def mlp_as_module_spec(submodules):
    return ModuleSpec(MLP, submodules=submodules)


def test_a_layer_warns_of_its_mlp_where_a_release_wants_it_otherwise(mesh, logged, monkeypatch):
    monkeypatch.setattr(upstream, "mlp_spec", mlp_as_module_spec)
    build_decoder(ModelConfig(preset="emu3-tiny"))

    warned = any("Rewrapping ModuleSpec" in line for line in logged)
    assert warned == hasattr(MLP, "as_mlp_submodule")


def test_a_layer_does_not_warn_of_its_mlp(mesh, logged):
    build_decoder(ModelConfig(preset="emu3-tiny"))

    assert logged == []


class Linear(torch.nn.Module):
    """Makes its weight as megatron-core's layers of TransformerEngine make theirs."""

    def __init__(self, size, *, config):
        super().__init__()
        device = extension._get_extra_te_kwargs(config)["device"]
        self.weight = torch.nn.Parameter(torch.empty(size, size, device=device))
        if config.use_cpu_initialization:
            keep = {"init_method": lambda tensor: tensor, "rank": 0, "world_size": 1}
            _initialize_affine_weight_cpu(self.weight, size, size, size, 0, **keep)


@pytest.fixture
def on_default_device(monkeypatch):
    """A configuration under which weights are made on torch's default device."""
    monkeypatch.setattr(extension, "is_te_min_version", lambda version: True)
    return SimpleNamespace(
        params_dtype=torch.float32, use_cpu_initialization=True, init_model_with_meta_device=False
    )


def test_a_layer_of_transformer_engine_cannot_be_made_without_data(mesh, on_default_device):
    with torch.device("meta"), pytest.raises(NotImplementedError, match="out of meta tensor"):
        Linear(4, config=on_default_device)


def test_such_a_layer_is_made_on_meta(mesh, on_default_device):
    layer = upstream.without_data_on_meta(Linear)
    with torch.device("meta"):
        assert layer(4, config=on_default_device).weight.is_meta

    assert layer(4, config=on_default_device).weight.device.type == "cpu"
    assert on_default_device.use_cpu_initialization, "the decoder's own stays as it is"


def test_each_tensor_that_torch_loads_is_a_mark_of_progress():
    upstream.mark_loaded_tensors()
    marks = []

    with progress.heard_by(lambda: marks.append(1)):
        DefaultLoadPlanner.commit_tensor.__wrapped__(None, None, None)
        assert not marks, "torch itself tells nobody"
        DefaultLoadPlanner.commit_tensor(None, None, None)

    assert len(marks) == 1
