"""What was imported is the model that transformers runs."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from emu3_kernels.exchange import GroupExchange
from support.hub_folders import MODEL, TEXT
from support.inputs import whole_rows
from support.processes import run_processes
from transformers import (
    Emu3ForCausalLM,
    Emu3ForConditionalGeneration,
    Emu3TextConfig,
    Emu3VQVAE,
    GenerationConfig,
)

from emu3_megatron import parallel
from emu3_megatron.checkpoints.folders import find_checkpoint, read_checkpoint
from emu3_megatron.config.tokenizer import TokenizerNetwork
from emu3_megatron.context_parallel.dispatch import dispatch
from emu3_megatron.generation.generator import generate
from emu3_megatron.generation.jobs import Request
from emu3_megatron.generation.raster import Choice
from emu3_megatron.generation.sampling import SamplingSettings
from emu3_megatron.interchange.configs import HubConfig
from emu3_megatron.interchange.exporting import export_folder
from emu3_megatron.interchange.importing import import_folder
from emu3_megatron.interchange.verify import verify
from emu3_megatron.model import Inputs, SequenceLayout
from emu3_megatron.model.opening import open_decoder
from emu3_megatron.parallel.groups import context_group
from emu3_megatron.vision.tokenizer import VisionTokenizer
from emu3_megatron.vocabulary import Vocabulary

TOKENS = torch.randint(1067, (2, 64), generator=torch.Generator().manual_seed(0))
PROMPT = "Dogs"
FP32 = torch.float32


def think(checkpoint: Path) -> tuple[np.ndarray, list[int]]:
    """Logits of TOKENS and a greedy continuation of PROMPT, on these tensor parallel ranks."""
    mesh = parallel.start(tensor=int(os.environ["WORLD_SIZE"]))
    mesh.seed(0, 0)
    decoder, recipe = open_decoder(checkpoint, mesh)
    with torch.no_grad():
        logits_bsv = decoder(whole_rows(TOKENS), "logits")
    vocabulary = recipe.model.vocabulary()
    request = Request(prompt(vocabulary), stop=(vocabulary.eos,))
    greedy = SamplingSettings(guidance=1, temperature=0)
    (said,) = generate(decoder, vocabulary, [request], greedy, max_tokens=80)
    return logits_bsv.numpy(), said.tolist()


def think_in_context_ranks(checkpoint: Path) -> np.ndarray:
    """Logits of TOKENS when two ranks hold half of each row."""
    mesh = parallel.start(context=2)
    mesh.seed(0, 0)
    decoder, _ = open_decoder(checkpoint, mesh)
    rows, length = TOKENS.shape
    order_cs = torch.from_numpy(dispatch([0, length], 2))
    mine_s = order_cs[mesh.context_rank]
    layout = SequenceLayout.of_documents(
        [[0, length]] * rows, order_cs.expand(rows, -1, -1), mesh.context_rank
    )
    exchange = GroupExchange(context_group(), point_to_point=True)
    layout = replace(layout, exchange=exchange)
    with torch.no_grad():
        part_bsv = decoder(Inputs(TOKENS[:, mine_s], mine_s.expand(rows, -1), layout), "logits")
    logits_bsv = part_bsv.new_zeros(rows, length, part_bsv.shape[-1])
    logits_bsv[:, mine_s] = part_bsv
    torch.distributed.all_reduce(logits_bsv)
    return logits_bsv.numpy()


def prompt(vocabulary: Vocabulary) -> np.ndarray:
    return np.append(vocabulary.bos, vocabulary.encode(PROMPT))


@pytest.fixture(scope="module")
def theirs(checkpoints, tmp_path_factory) -> Emu3ForCausalLM:
    """transformers' decoder, loaded from what we export: nothing missing, nothing unexpected."""
    folder = tmp_path_factory.mktemp("exported") / "decoder"
    export_folder(checkpoints["baai", FP32], folder)
    return load_exactly(Emu3ForCausalLM, folder)


def load_exactly(kind, folder):
    model, info = kind.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    return model.eval()


@pytest.fixture(scope="module")
def expected(theirs) -> tuple[np.ndarray, list[int]]:
    vocabulary = Vocabulary.tiny(600)
    text = Choice.TEXT.ids(vocabulary)
    settings = GenerationConfig(
        max_new_tokens=80,
        do_sample=False,
        suppress_tokens=np.setdiff1d(np.arange(vocabulary.size), text).tolist(),
        bos_token_id=vocabulary.bos,
        eos_token_id=vocabulary.eos,
        pad_token_id=vocabulary.pad,
    )
    start = torch.from_numpy(prompt(vocabulary)).long()[None]
    with torch.no_grad():
        logits_bsv = theirs(TOKENS).logits.numpy()
        said = theirs.generate(start, generation_config=settings)[0, start.shape[1] :].tolist()
    assert len(said) >= 64
    assert len(set(said)) > 15  # not the same few over and over
    return logits_bsv, said


@pytest.mark.parametrize("size", [1, 2])
def test_logits_and_greedy_generation_are_equal(size, checkpoints, expected):
    logits_bsv, said = run_processes(think, size, checkpoints["hub", FP32])[0]

    np.testing.assert_allclose(logits_bsv, expected[0], rtol=0, atol=1e-5)
    assert said == expected[1]


def test_logits_are_equal_over_context_ranks(checkpoints, expected):
    logits_bsv = run_processes(think_in_context_ranks, 2, checkpoints["hub", FP32])[0]

    np.testing.assert_allclose(logits_bsv, expected[0], rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("layout", ["transformers", "baai-vision"])
def test_codes_are_equal(layout, models, checkpoints):
    theirs = models[FP32].model.vqmodel
    folder = checkpoints[layout, FP32]
    ours = VisionTokenizer.load(folder if layout == "baai-vision" else folder / "tokenizer")
    generator = torch.Generator().manual_seed(1)
    clips = torch.rand(2, 8, 3, 64, 48, generator=generator) * 2 - 1
    images = clips[:, 0]

    image_codes = ours.encode_images(images)

    assert image_codes.unique().numel() > 20
    whole = torch.tensor([[64, 48]] * 2)
    assert torch.equal(image_codes, torch.stack(theirs.encode(images, whole).image_tokens))
    assert torch.equal(ours.encode_clips(clips), codes_of_clips(theirs, clips))


def codes_of_clips(model: Emu3VQVAE, pixels_btchw: torch.Tensor) -> torch.Tensor:
    """Its own `encode` crops clips by (time, height) instead of (height, width)."""
    latents_bcfhw = model.quant_conv(model.encoder(pixels_btchw).transpose(1, 2))
    return model.quantize(latents_bcfhw.transpose(1, 2))


@pytest.mark.parametrize("layout", ["transformers", "hub"])
def test_transformers_loads_both_models_from_one_folder(layout, checkpoints, tmp_path):
    export_folder(checkpoints["transformers", FP32], tmp_path / "out", layout)

    model = load_exactly(Emu3ForConditionalGeneration, tmp_path / "out")

    assert model.model.vocabulary_mapping.image_token_id == 256 + 3
    assert model.config.text_config.max_position_embeddings == 321


def test_transformers_loads_a_tokenizer_alone(checkpoints, tmp_path):
    export_folder(checkpoints["baai-vision", FP32], tmp_path / "out")

    load_exactly(Emu3VQVAE, tmp_path / "out")


def test_verify_says_so(hub_folders, checkpoints):
    decoder, vision = verify(hub_folders["hub", FP32], checkpoints["transformers", FP32])

    difference = float(decoder.split("difference ")[1].split()[0])
    assert difference < 1e-5
    assert vision.startswith("vision tokenizer: 100.00% of image codes equal, 100.00% of a clip's")


def test_a_tokenizer_that_was_trained_here_verifies(tmp_path, mesh):
    torch.manual_seed(0)
    VisionTokenizer(TokenizerNetwork(preset="tiny")).save(tmp_path / "ours")
    export_folder(tmp_path / "ours", tmp_path / "hf")

    (line,) = verify(tmp_path / "hf", tmp_path / "ours")

    assert line.startswith("vision tokenizer: 100.00% of image codes equal, 100.00% of a clip's")


def change_text_config(folder: Path, **values) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["text_config"] = {**config["text_config"], **values}
    path.write_text(json.dumps(config), encoding="utf-8")


def difference(line: str) -> float:
    return float(line.split("difference ")[1].split()[0])


def test_a_base_of_positions_outside_its_dictionary_is_read(hub_folders, tmp_path, mesh):
    folder = shutil.copytree(hub_folders["transformers", FP32], tmp_path / "hf")
    change_text_config(folder, rope_theta=1e4, rope_parameters={"rope_type": "default"})

    import_folder(folder, tmp_path / "ours")

    about = read_checkpoint(find_checkpoint(tmp_path / "ours"))
    assert about["recipe"]["model"]["rope_base"] == 1e4
    assert difference(verify(folder, tmp_path / "ours")[0]) < 1e-5


def test_verify_runs_what_transformers_reads(monkeypatch, hub_folders, checkpoints, tmp_path):
    folder = shutil.copytree(hub_folders["transformers", FP32], tmp_path / "hf")
    change_text_config(folder, rope_theta=1e4, rope_parameters={"rope_type": "default"})
    monkeypatch.setattr(HubConfig, "_rope_base", lambda self, values: 1_000_000)  # as if misread

    assert difference(verify(folder, checkpoints["transformers", FP32])[0]) > 0.1


def test_as_many_key_value_heads_as_heads_may_be_left_open(tmp_path, mesh):
    config = Emu3TextConfig(**{**TEXT, "num_key_value_heads": MODEL.heads})
    torch.manual_seed(0)
    Emu3ForCausalLM(config).save_pretrained(tmp_path / "hf")
    path = tmp_path / "hf" / "config.json"
    path.write_text(
        json.dumps({**json.loads(path.read_text(encoding="utf-8")), "num_key_value_heads": None}),
        encoding="utf-8",
    )

    import_folder(tmp_path / "hf", tmp_path / "ours")

    assert difference(verify(tmp_path / "hf", tmp_path / "ours")[0]) < 1e-5


@pytest.mark.parametrize("layout", ["baai", "transformers"])
def test_what_baai_states_of_pictures_and_positions_comes_back(layout, hub_folders, tmp_path, mesh):
    folder = shutil.copytree(hub_folders["baai", FP32], tmp_path / "hf")
    path = folder / "config.json"
    path.write_text(
        json.dumps({**json.loads(path.read_text(encoding="utf-8")), "image_area": 518_400}),
        encoding="utf-8",
    )

    import_folder(folder, tmp_path / "ours")
    export_folder(tmp_path / "ours", tmp_path / "out", layout)

    exported = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    assert (exported["image_area"], exported["max_position_embeddings"]) == (518_400, 321)


@pytest.mark.parametrize("layout", ["baai", "baai-vision"])
def test_folders_of_baai_verify_without_its_code(layout, hub_folders, checkpoints):
    (line,) = verify(hub_folders[layout, FP32], checkpoints[layout, FP32])

    if layout == "baai":
        assert difference(line) < 1e-5
    else:
        assert line.startswith("vision tokenizer: 100.00% of image codes equal, 100.00% of a")
