"""Hugging Face to Megatron, through tensor parallel ranks, and back: every tensor, every bit."""

import os
from pathlib import Path

import pytest
import torch
from megatron.core import dist_checkpointing
from safetensors.torch import load_file
from support.processes import run_processes
from torch.distributed.checkpoint import FileSystemReader

from emu3_megatron import manifest, parallel
from emu3_megatron.checkpoints.folders import find_checkpoint, read_checkpoint
from emu3_megatron.interchange.exporting import export_folder
from emu3_megatron.model.opening import open_decoder, sharded_weights

DTYPES = (torch.float32, torch.bfloat16)
LAYOUTS = ("transformers", "hub", "baai", "baai-vision")


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return {
        name: tensor
        for file in sorted(folder.glob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def assert_same_bits(one: Path, other: Path) -> None:
    ones, others = tensors_of(one), tensors_of(other)
    assert ones.keys() == others.keys()
    for name, tensor in ones.items():
        assert (tensor.dtype, tensor.shape) == (others[name].dtype, others[name].shape), name
        assert torch.equal(bits_of(tensor), bits_of(others[name])), name


def bits_of(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.reshape(-1).view(torch.uint8)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_there_and_back(layout, dtype, hub_folders, checkpoints, tmp_path):
    out = tmp_path / "out"
    export_folder(checkpoints[layout, dtype], out, layout.removesuffix("-vision"))

    assert_same_bits(hub_folders[layout, dtype], out)


def test_only_large_tables_are_written_in_chunks(checkpoints):
    reader = FileSystemReader(checkpoints["baai", torch.float32] / "checkpoints")
    stored = reader.read_metadata().state_dict_metadata

    assert len(stored["head.weight"].chunks) == 1152 // 64  # rows of 256 bytes, 16 KiB at once
    assert len(stored["block.layers.self_attention.linear_proj.weight"].chunks) == 2  # layers


def save_again(sources: list[Path], targets: list[Path]) -> None:
    """Open checkpoints on these tensor parallel ranks and save what each holds."""
    mesh = parallel.start(tensor=int(os.environ["WORLD_SIZE"]))
    mesh.seed(0, 0)
    for source, target in zip(sources, targets, strict=True):
        decoder, _ = open_decoder(source, mesh)
        beside = target.with_suffix(".beside")
        if mesh.is_first:
            beside.mkdir()
        torch.distributed.barrier()
        dist_checkpointing.save({"model": sharded_weights(decoder)}, str(beside))
        if mesh.is_first:
            about = read_checkpoint(find_checkpoint(source))
            about = {k: v for k, v in about.items() if k != "files"}
            manifest.commit(beside, target, about, known={})


@pytest.mark.parametrize("size", [2, 4])
def test_through_tensor_parallel_ranks(size, hub_folders, checkpoints, tmp_path):
    targets = [tmp_path / f"{dtype.itemsize}" for dtype in DTYPES]
    sources = [checkpoints["baai", dtype] for dtype in DTYPES]

    run_processes(save_again, size, sources, targets)

    for dtype, target in zip(DTYPES, targets, strict=True):
        vision = checkpoints["transformers", dtype] / "tokenizer"
        for layout, beside in (("baai", None), ("hub", vision), ("transformers", vision)):
            out = tmp_path / f"{layout}-{dtype.itemsize}"
            export_folder(target, out, layout, tokenizer=beside)
            assert_same_bits(hub_folders[layout, dtype], out)


def test_large_files_are_divided(hub_folders, checkpoints, tmp_path):
    export_folder(checkpoints["baai", torch.float32], tmp_path / "out", shard_bytes=300_000)

    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 1
    assert_same_bits(hub_folders["baai", torch.float32], tmp_path / "out")
