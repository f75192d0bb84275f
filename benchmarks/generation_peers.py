"""Contestants of generation.py beside ours: an earlier commit, and what transformers offers."""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from generation_engine import CAPTION, Engine, Task, Timing
from torch import Tensor
from transformers import (
    DynamicCache,
    Emu3ForCausalLM,
    Emu3TextConfig,
    LogitsProcessor,
)

from emu3_megatron.config import ModelConfig
from emu3_megatron.grammar import Meta, vision_prompt
from emu3_megatron.interchange.layouts import LAYOUTS
from emu3_megatron.interchange.parameters import counterparts, split
from emu3_megatron.model.tensors import named_tensors
from emu3_megatron.vocabulary import Vocabulary

ROOT = Path(__file__).parent.parent


class Earlier:
    """The engine of an earlier commit, in a process of its own over an export of that commit."""

    def __init__(self, commit: str, model: ModelConfig, folder: Path):
        packages = folder / "packages"
        packages.mkdir(parents=True)
        archive = subprocess.run(
            ["git", "archive", commit, "emu3_megatron", "kernels"],
            cwd=ROOT,
            check=True,
            capture_output=True,
        )
        subprocess.run(["tar", "x", "-C", packages], input=archive.stdout, check=True)
        (packages / "kernels").rename(packages / "emu3_kernels")
        self._process = subprocess.Popen(
            [sys.executable, Path(__file__).parent / "generation_engine.py", _sizes(model)],
            env={**os.environ, "PYTHONPATH": str(packages)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )

    def timed(self, task: Task) -> Timing:
        assert self._process.stdin
        assert self._process.stdout
        print(json.dumps(asdict(task)), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the earlier engine ended with {self._process.wait()}")
        return Timing(**json.loads(line))

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


def _sizes(model: ModelConfig) -> str:
    return json.dumps(model.model_dump(mode="json", exclude={"preset"}))


def in_transformers(engine: Engine, model: ModelConfig) -> Emu3ForCausalLM:
    """The engine's weights in transformers' model."""
    config = Emu3TextConfig(
        vocab_size=engine.vocabulary.size,
        hidden_size=model.hidden,
        intermediate_size=model.ffn,
        num_hidden_layers=model.layers,
        num_attention_heads=model.heads,
        num_key_value_heads=model.kv_heads,
        pad_token_id=engine.vocabulary.pad,
        bos_token_id=engine.vocabulary.bos,
        eos_token_id=None,
    )
    names, tensors = LAYOUTS["baai"].decoder, {}
    for name, parameter in named_tensors(engine.decoder):
        parts = split(name, parameter.detach(), model)
        tensors |= dict(zip(counterparts(name, names), parts, strict=True))
    dtype, device = parameter.dtype, parameter.device
    with torch.device("meta"):
        theirs = Emu3ForCausalLM(config).to(dtype)
    theirs.load_state_dict(tensors, assign=True)
    with torch.device(device):  # tables that no checkpoint holds
        theirs.model.rotary_emb = type(theirs.model.rotary_emb)(config)
    return theirs.eval()


class Peer:
    """Draws the images of a task one after another by transformers' model.

    Attributes:
        limit: tokens of an image at most.
    """

    limit: int | None = None

    def __init__(self, model: Emu3ForCausalLM, vocabulary: Vocabulary):
        self.model = model
        self.vocabulary = vocabulary
        self.device = model.device

    @torch.no_grad()
    def __call__(self, task: Task) -> list[int]:
        torch.manual_seed(task.seed)
        first = self.vocabulary.first_code
        tokens = [token for grid in task.grids for token in self.draw(task, Meta(*grid))]
        return [token - first for token in tokens if token >= first]

    def draw(self, task: Task, meta: Meta) -> list[int]:
        raise NotImplementedError

    def prompt(self, caption: str, meta: Meta) -> Tensor:
        tokens_s = torch.from_numpy(vision_prompt(self.vocabulary, caption, meta))
        return tokens_s.long().to(self.device)[None]

    def forced(self, meta: Meta, place: int) -> int | None:
        """The token that must come after so many of an image, None for a code."""
        if place == meta.num_tokens:
            return self.vocabulary.vision_end
        if place == meta.num_tokens - 1:
            return self.vocabulary.end_of_frame
        return self.vocabulary.end_of_line if place % (meta.width + 1) == meta.width else None


class ByGenerate(Peer):
    """`transformers.generate` with its own guidance and top-k; a mask holds the grammar."""

    def draw(self, task: Task, meta: Meta) -> list[int]:
        prompt_1s = self.prompt(CAPTION, meta)
        settings = task.settings
        sampling = {"temperature": 1.0, "top_k": settings.top_k} if not task.greedy else {}
        said_1t = self.model.generate(
            prompt_1s,
            attention_mask=torch.ones_like(prompt_1s),
            negative_prompt_ids=self.prompt("", meta),
            guidance_scale=settings.guidance,
            max_new_tokens=self.limit or meta.num_tokens + 1,
            do_sample=not task.greedy,
            logits_processor=[_Grammar(self, meta, prompt_1s.shape[1])],
            **sampling,
        )
        return said_1t[0, prompt_1s.shape[1] :].tolist()


class _Grammar(LogitsProcessor):
    """Masks that are made once; which of them holds, the place alone decides."""

    def __init__(self, peer: Peer, meta: Meta, prompt: int):
        self._first, self._forced = prompt, lambda place: peer.forced(meta, place)
        self._hidden_v = torch.ones(peer.vocabulary.size, dtype=torch.bool, device=peer.device)
        self._hidden_v[peer.vocabulary.first_code :] = False

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        forced = self._forced(input_ids.shape[1] - self._first)
        if forced is None:
            return scores.masked_fill(self._hidden_v, -torch.inf)
        only = torch.full_like(scores, -torch.inf)
        only[:, forced] = 0
        return only


class PlainLoop(Peer):
    """A loop over transformers' model, the two branches of guidance as a batch of two."""

    def draw(self, task: Task, meta: Meta) -> list[int]:
        tokens_bs, mask_bs = self._padded(self.prompt(CAPTION, meta), self.prompt("", meta))
        positions_bs = (mask_bs.cumsum(-1) - 1).clamp(min=0)
        cache, said = DynamicCache(config=self.model.config), []
        one_b1 = mask_bs.new_ones(2, 1)
        for place in range(self.limit or meta.num_tokens + 1):
            out = self.model(
                input_ids=tokens_bs,
                attention_mask=mask_bs,
                position_ids=positions_bs,
                cache=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            forced = self.forced(meta, place)
            said.append(self._code(out.logits[:, -1], task) if forced is None else forced)
            tokens_bs = tokens_bs.new_full((2, 1), said[-1])
            mask_bs = torch.cat([mask_bs, one_b1], -1)
            positions_bs = positions_bs[:, -1:] + 1
        return said

    def _padded(self, prompt_1s: Tensor, negative_1s: Tensor) -> tuple[Tensor, Tensor]:
        """Both, padded on the left, and which of the tokens are not padding."""
        padding = prompt_1s.shape[1] - negative_1s.shape[1]
        pad = torch.nn.functional.pad
        tokens_bs = torch.cat([prompt_1s, pad(negative_1s, (padding, 0))])
        mask_bs = torch.ones_like(tokens_bs)
        mask_bs[1, :padding] = 0
        return tokens_bs, mask_bs

    def _code(self, logits_bv: Tensor, task: Task) -> int:
        first = self.vocabulary.first_code
        guided_v, negative_v = logits_bv[:, first:].float()
        scores_v = negative_v + task.settings.guidance * (guided_v - negative_v)
        if task.greedy:
            return first + int(scores_v.argmax())
        scores_k, codes_k = scores_v.topk(min(task.settings.top_k or 1, len(scores_v)))
        return first + int(codes_k[scores_k.softmax(-1).multinomial(1)])
