"""DPO as TRL computes it: loss, rewards and gradients of the same pairs, 10x apart in length."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from support.batches import reader
from support.pairs import CONTEXT, dpo_recipe, pack_pairs, pairs_of_answers, pairs_of_images
from support.processes import run_processes
from support.steps import start
from support.tiny import VOCABULARY
from torch import Tensor
from transformers import Emu3ForCausalLM, Emu3TextConfig, PreTrainedTokenizerFast

from emu3_megatron import parallel
from emu3_megatron.checkpoints.folders import find_checkpoint
from emu3_megatron.config import Recipe
from emu3_megatron.data.mixed import MixtureData
from emu3_megatron.data.setting import Setting
from emu3_megatron.interchange.exporting import export_folder
from emu3_megatron.interchange.importing import import_folder

pytestmark = pytest.mark.slow

NLL = 0.3
VARIANTS = {
    "sigmoid": ("sigmoid", {"beta": 0.1}),
    "normalized": ("sigmoid_norm", {"beta": 2.0}),
    "ipo": ("ipo", {"beta": 0.5}),
    "hinge": ("hinge", {"beta": 0.1}),
}


def make_theirs(seed: int) -> Emu3ForCausalLM:
    torch.manual_seed(seed)
    config = Emu3TextConfig(
        vocab_size=VOCABULARY.size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        attention_dropout=0.0,
        pad_token_id=VOCABULARY.pad,
        bos_token_id=VOCABULARY.bos,
        eos_token_id=VOCABULARY.eos,
    )
    model = Emu3ForCausalLM(config)
    if seed:  # the policy: near the reference, as after some steps
        start_of = make_theirs(0).state_dict()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.mul_(0.05).add_(start_of[name])
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, mesh: Any) -> Path:
    folder = tmp_path_factory.mktemp("trl")
    for seed, name in enumerate(("reference", "policy")):
        make_theirs(seed).save_pretrained(folder / f"{name}-theirs")
        import_folder(folder / f"{name}-theirs", folder / name)
    pack_pairs(folder, "pairs", [*pairs_of_images(8), *pairs_of_answers(6)])
    return folder


def recipe_of(folder: Path, variant: str) -> Recipe:
    reference = {"kind": "live", "checkpoint": str(folder / "reference")}
    objective = {"variant": variant, "nll": NLL, "tokens": "answer", "reference": reference}
    return dpo_recipe(
        folder / "pairs.pack",
        folder / "run",
        folder / "reference",
        objective={"kind": "dpo", **objective, **VARIANTS[variant][1]},
    )


def ours(recipes: dict[str, Recipe], folder: Path) -> dict[str, Any]:
    """Metrics and gradients by variant, the gradients exported as if they were weights."""
    found = {}
    for variant, recipe in recipes.items():
        steps = start(recipe)
        steps.engine.start_from(find_checkpoint(folder / "policy"))
        trainer = steps.trainer
        batches = trainer._at(1, next(iter(steps.data.batches(steps, 0, 1))))
        denominators = trainer._denominators(batches)
        forward = lambda decoder, batch, t=trainer, d=denominators: t.forward(decoder, batch, d)
        metrics = trainer.objective.metrics(
            trainer.sum(steps.engine.forward_backward(batches, forward))
        )
        parameters = list(steps.engine.live.parameters())
        gradients = [parameter.main_grad.clone() for parameter in parameters]
        steps.engine.update(
            steps.engine.grad_norm(), 0.0
        )  # a checkpoint has the optimizer's states
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.data.copy_(gradient)
        steps.save(folder / f"gradients-{variant}", 1)
        target = folder / f"gradients-{variant}-theirs"
        export_folder(folder / f"gradients-{variant}", target)
        found[variant] = metrics, load_file(target / "model.safetensors")
        parallel.stop(keep_processes=True)
    return found


def pairs_of_step(recipe: Recipe) -> dict[str, Tensor]:
    """The pairs of the first step as TRL takes them: chosen rows, then rejected ones, padded."""
    batch = recipe.batch.model_copy(update={"micro_size": recipe.batch.size})
    weights = {"text": 1.0, "structure": 1.0, "code": 1.0}
    setting = Setting(recipe.model.vocabulary(), batch, recipe.run.seed, weights, group=2)
    ((whole,),) = MixtureData(recipe.data, setting).batches(reader(), 0, 1)
    documents: list[tuple[Tensor, Tensor]] = []
    for row, bounds in enumerate(whole.boundaries):
        for number in range(len(whole.documents[row])):
            part = slice(int(bounds[number]), int(bounds[number + 1]))
            counted = whole.weights[row, part] > 0  # of labels, a token later
            documents.append((whole.tokens[row, part], counted.roll(1)))
    documents = documents[::2] + documents[1::2]
    pad = lambda values, fill: torch.nn.utils.rnn.pad_sequence(values, True, fill)
    tokens, counted = zip(*documents, strict=True)
    return {
        "input_ids": pad(tokens, VOCABULARY.pad),
        "attention_mask": pad([torch.ones_like(one) for one in tokens], 0),
        "completion_mask": pad([one.long() for one in counted], 0),
    }


def theirs(recipe: Recipe, loss_type: str, folder: Path) -> tuple[float, dict[str, Any], Any]:
    """TRL's loss, metrics and gradients of the same pairs."""
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers
    from trl import DPOConfig, DPOTrainer

    # Its fp32 sums over hundreds of tokens would round by more than 1e-5.
    model, reference = make_theirs(1).double(), make_theirs(0).double()
    words = Tokenizer(models.WordLevel({"a": 0, "b": 1, "c": 2, "</s>": 3}, unk_token="a"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    settings = {
        "output_dir": str(folder / "trl"),
        "loss_type": [loss_type, "sft"],
        "loss_weights": [1.0, NLL],
        "beta": recipe.objective.beta,
        "report_to": [],
        "bf16": False,
        "use_cpu": True,
        "gradient_checkpointing": False,
    }
    trainer = DPOTrainer(
        model,
        reference,
        args=DPOConfig(**settings),
        train_dataset=Dataset.from_dict({"prompt": ["a"], "chosen": ["b"], "rejected": ["c"]}),
        processing_class=PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>"),
    )
    model.train()
    loss = trainer._compute_loss(model, pairs_of_step(recipe), return_outputs=False)
    loss.backward()
    metrics = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    return float(loss.detach()), metrics, {n: p.grad for n, p in model.named_parameters()}


@pytest.fixture(scope="module")
def computed(folder: Path) -> dict[str, Any]:
    recipes = {variant: recipe_of(folder, variant) for variant in VARIANTS}
    return run_processes(ours, 1, recipes, folder)[0]


@pytest.mark.parametrize("variant", VARIANTS)
def test_loss_rewards_and_gradients_are_trls(folder: Path, computed: Any, variant: str):
    metrics, gradients = computed[variant]

    loss, their_metrics, their_gradients = theirs(
        recipe_of(folder, variant), VARIANTS[variant][0], folder
    )

    assert metrics["loss"] == pytest.approx(loss, abs=1e-5)
    shared = {name for name in their_metrics if name.startswith(("rewards/", "logps/", "entropy"))}
    assert len(shared) == 7
    for name in shared:
        assert metrics[name] == pytest.approx(their_metrics[name], rel=1e-5, abs=1e-5), name
    assert gradients.keys() == their_gradients.keys()
    difference = total = 0.0
    for name, gradient in their_gradients.items():
        difference += float(((torch.from_numpy(np.array(gradients[name])) - gradient) ** 2).sum())
        total += float((gradient**2).sum())
    assert (difference / total) ** 0.5 < 1e-5
