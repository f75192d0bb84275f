"""Copies of a weight that no longer agree."""

import torch
import torch.distributed as dist
from support.faults import events, run_job

from emu3_megatron.model.tensors import named_tensors
from emu3_megatron.training.trainer import DecoderTrainer


def drift_in_step_3(name):
    """One bit of rank 1's copy, after the step."""
    step = DecoderTrainer.step

    def drifting(self, number, batches, judge):
        result = step(self, number, batches, judge)
        if number == 3 and dist.get_rank() == 1:
            parameter = dict(named_tensors(self.engine.live))[name]
            parameter.data.view(-1).view(torch.int32)[0] ^= 1
        return result

    DecoderTrainer.step = drifting


def norm_drifts():
    drift_in_step_3("block.final_layernorm.weight")


def test_a_norm_that_differs_between_tensor_parallel_ranks_ends_the_run(recipe):
    recipe = recipe(parallel={"tensor": 2}, guard={"replicas_every": 3})
    ends = run_job(recipe, ranks=2, fault=norm_drifts)

    assert [end.code for end in ends] == [76, 76], ends[0].said
    assert "step 3: block.final_layernorm.weight is not the same on all ranks: " in ends[0].said
    assert "on ranks 1" in ends[0].said
    assert [event["step"] for event in events(recipe.run.dir, "replicas differ")] == [3]


def embedding_drifts():
    drift_in_step_3("embedding.word_embeddings.weight")


def test_a_weight_that_differs_between_data_parallel_ranks_ends_the_run(recipe):
    recipe = recipe(guard={"replicas_every": 3})
    ends = run_job(recipe, ranks=2, fault=embedding_drifts)

    assert [end.code for end in ends] == [76, 76], ends[0].said
    assert "embedding.word_embeddings.weight is not the same on all ranks" in ends[0].said


def test_ranks_that_agree_train_on(recipe):
    ends = run_job(recipe(guard={"replicas_every": 1}, parallel={"tensor": 2}), ranks=2)

    assert [end.code for end in ends] == [0, 0], ends[0].said
