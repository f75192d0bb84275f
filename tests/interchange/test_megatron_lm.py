"""Checkpoints of Megatron-LM's GPTModel, which megatron-core itself writes here, in and out."""

import re
import shutil
from pathlib import Path

import pytest
import torch
from support.gpt import (
    arguments,
    build_gpt,
    save_distributed,
    save_files,
    save_on_ranks,
    whole_state,
)
from support.inputs import whole_rows
from support.processes import run_processes

from emu3_megatron.checkpoints.folders import find_checkpoint, read_checkpoint
from emu3_megatron.errors import InputError
from emu3_megatron.interchange.exporting import export_folder
from emu3_megatron.interchange.importing import import_folder
from emu3_megatron.interchange.megatron_lm.arguments import model_of
from emu3_megatron.interchange.megatron_lm.names import fused
from emu3_megatron.interchange.megatron_lm.reading import load_file
from emu3_megatron.model.opening import open_decoder


@pytest.fixture(scope="module")
def written(tmp_path_factory, mesh) -> dict[tuple[str, int], Path]:
    """Folders of Megatron-LM by format and tensor parallel size."""
    root = tmp_path_factory.mktemp("megatron")
    folders = {(form, n): root / f"{form}-{n}" for form in ("torch_dist", "torch") for n in (1, 2)}
    save_distributed(folders["torch_dist", 1])
    save_files(folders["torch", 1])
    run_processes(save_on_ranks, 2, folders["torch_dist", 2], folders["torch", 2], 2)
    return folders


def same_bits(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("tensor", [1, 2])
def test_a_distributed_checkpoint_goes_there_and_back(tensor, written, tmp_path, mesh):
    import_folder(written["torch_dist", tensor], tmp_path / "ours")
    export_folder(tmp_path / "ours", tmp_path / "back", "megatron", tensor=tensor)

    assert (tmp_path / "back" / "latest_checkpointed_iteration.txt").read_text(
        encoding="utf-8"
    ) == "release"
    before = whole_state(written["torch_dist", tensor] / "iter_0000007")
    assert same_bits(before, whole_state(tmp_path / "back" / "release"))


def test_files_of_ranks_hold_the_model_of_the_distributed_checkpoint(written, tmp_path, mesh):
    import_folder(written["torch", 2], tmp_path / "ours")
    export_folder(tmp_path / "ours", tmp_path / "back", "megatron", tensor=2)

    before = whole_state(written["torch_dist", 2] / "iter_0000007")
    assert same_bits(before, whole_state(tmp_path / "back" / "release"))


def test_layers_that_were_written_one_by_one_are_found(written, tmp_path):
    save_distributed(tmp_path / "theirs", non_homogeneous_layers=True)

    import_folder(tmp_path / "theirs", tmp_path / "ours")

    export_folder(tmp_path / "ours", tmp_path / "back", "megatron")
    before = whole_state(written["torch_dist", 1] / "iter_0000007")
    assert same_bits(before, whole_state(tmp_path / "back" / "release"))


def test_norms_that_belong_to_transformer_engines_layers_are_found(written, tmp_path):
    content = load_file(written["torch", 1] / "iter_0000007" / "mp_rank_00" / "model_optim_rng.pt")
    content["model"] = {fused(name): tensor for name, tensor in content["model"].items()}
    assert "decoder.layers.0.mlp.linear_fc1.layer_norm_weight" in content["model"]
    torch.save(content, tmp_path / "theirs.pt")

    import_folder(tmp_path / "theirs.pt", tmp_path / "ours")

    export_folder(tmp_path / "ours", tmp_path / "back", "megatron")
    before = whole_state(written["torch_dist", 1] / "iter_0000007")
    assert same_bits(before, whole_state(tmp_path / "back" / "release"))


def test_a_single_file_goes_there_and_back(written, tmp_path, mesh):
    file = "mp_rank_00/model_optim_rng.pt"
    given = written["torch", 1] / "iter_0000007" / file
    import_folder(given, tmp_path / "ours")
    export_folder(tmp_path / "ours", tmp_path / "back.pt", "megatron-file")
    export_folder(tmp_path / "ours", tmp_path / "back", "megatron-file")

    tensors = {n: t for n, t in load_file(given)["model"].items() if isinstance(t, torch.Tensor)}
    assert same_bits(tensors, load_file(tmp_path / "back.pt")["model"])
    assert same_bits(tensors, load_file(tmp_path / "back" / "release" / file)["model"])
    into = build_gpt()
    missing, unexpected = into.load_state_dict(load_file(tmp_path / "back.pt")["model"], False)
    assert not unexpected
    assert not [name for name in missing if not name.endswith("_extra_state")]


def test_what_was_imported_computes_what_gpt_model_computes(written, tmp_path, mesh):
    import_folder(written["torch_dist", 1], tmp_path / "ours")
    ours, recipe = open_decoder(tmp_path / "ours", mesh)
    theirs = build_gpt()
    tokens_bs = torch.randint(979, (2, 32), generator=torch.Generator().manual_seed(0))
    mask = torch.ones(1, 1, 32, 32).tril() < 0.5

    with torch.no_grad():
        expected_bsv = theirs(tokens_bs, torch.arange(32).expand(2, -1), mask)[..., :979]
        logits_bsv = ours(whole_rows(tokens_bs), "logits")

    assert expected_bsv.abs().max() > 1
    torch.testing.assert_close(logits_bsv, expected_bsv, rtol=0, atol=1e-4)
    about = read_checkpoint(find_checkpoint(tmp_path / "ours"))
    assert (about["max_positions"], recipe.model.rope_base) == (321, 10_000)


def respell(folder: Path, **changed) -> None:
    common = folder / "iter_0000007" / "common.pt"
    content = load_file(common)
    vars(content["args"]).update(changed)
    torch.save(content, common)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"normalization": "LayerNorm"}, r"normalization is LayerNorm; only RMSNorm is supported"),
        ({"num_experts": 8}, r"num_experts is 8; only None is supported"),
        ({"rotary_percent": 0.5}, r"rotary_percent is 0\.5; only 1\.0 is supported"),
        ({"ffn_hidden_size": 100}, r"linear_fc1\.weight is .* its arguments make it"),
        ({"make_vocab_size_divisible_by": 100}, r"1,024 rows .* of no preset's vocabulary; name"),
        ({"num_layers": 3}, r"is 2 x .*, its arguments make it 3 x"),
    ],
    ids=lambda case: next(iter(case)) if isinstance(case, dict) else "",
)
def test_another_architecture_is_refused_by_name(changed, message, written, tmp_path, mesh):
    folder = shutil.copytree(written["torch_dist", 1], tmp_path / "theirs")
    respell(folder, **changed)

    with pytest.raises(InputError, match=message) as refused:
        import_folder(folder, tmp_path / "ours")

    assert "\n" not in str(refused.value)
    assert not (tmp_path / "ours").exists()


def test_arguments_of_newer_versions_are_read(written, tmp_path, mesh):
    given = arguments(1)
    given.layernorm_epsilon = 3e-6
    del given.norm_epsilon

    model = model_of(given, 1024, tmp_path, preset=None, ranks_file=None)

    assert (model.norm_epsilon, model.codes) == (3e-6, 512)


def test_the_vocabulary_can_be_named(written, tmp_path, mesh):
    folder = shutil.copytree(written["torch_dist", 1], tmp_path / "theirs")
    respell(folder, make_vocab_size_divisible_by=100)

    import_folder(folder, tmp_path / "ours", preset="emu3-tiny")

    assert read_checkpoint(find_checkpoint(tmp_path / "ours"))["recipe"]["model"]["codes"] == 512


def test_damaged_and_incomplete_files_are_refused(written, tmp_path, mesh):
    folder = shutil.copytree(written["torch", 2], tmp_path / "theirs")
    shutil.rmtree(folder / "iter_0000007" / "mp_rank_01")
    with pytest.raises(InputError, match=r"tensor_model_parallel_size is 2, and 1 files are there"):
        import_folder(folder, tmp_path / "ours")
    file = folder / "iter_0000007" / "mp_rank_00" / "model_optim_rng.pt"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(InputError, match=r"model_optim_rng\.pt: damaged or not a file of torch"):
        import_folder(folder, tmp_path / "ours")


def test_reading_a_file_runs_no_code(tmp_path):
    class Malicious:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"args": arguments(1), "model": {}, "more": Malicious()}, tmp_path / "a.pt")

    content = load_file(tmp_path / "a.pt")

    assert not (tmp_path / "ran").exists()
    assert content["args"].num_layers == 2
    assert re.fullmatch(r"<.*_Inert object at .*>", repr(content["args"].attention_backend))
