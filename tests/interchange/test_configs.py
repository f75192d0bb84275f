"""`config.json`: what it says, and what it leaves unsaid."""

import json

from transformers import Emu3Config, Emu3TextConfig, Emu3VQVAEConfig

from emu3_megatron.config import ModelConfig
from emu3_megatron.config.tokenizer import TokenizerNetwork
from emu3_megatron.interchange.configs import HubConfig


def test_fields_left_out_are_those_of_the_published_models(tmp_path):
    # As transformers 4.48 wrote the folders that lie on the hub.
    parts = {"text_config": "emu3_text_model", "vq_config": "emu3_vqgan"}
    short = {"model_type": "emu3"} | {name: {"model_type": kind} for name, kind in parts.items()}
    (tmp_path / "short").mkdir()
    (tmp_path / "short" / "config.json").write_text(json.dumps(short), encoding="utf-8")
    whole = Emu3Config(text_config=Emu3TextConfig(), vq_config=Emu3VQVAEConfig())
    whole.save_pretrained(tmp_path / "whole")
    assert "num_hidden_layers" in (tmp_path / "whole" / "config.json").read_text(encoding="utf-8")

    for folder in ("short", "whole"):
        config = HubConfig(tmp_path / folder)
        assert config.decoder(None) == ModelConfig.model_validate({"preset": "emu3-8b"})
        assert config.max_positions() == 9216
        assert config.vision() == TokenizerNetwork.model_validate({})
