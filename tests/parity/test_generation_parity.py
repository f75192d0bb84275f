"""What is generated greedily is at each place the likeliest token by transformers.

One pass over the finished sequence proves it: a place counts as equal where the token that was said
is the likeliest of those that the grammar allows, or within 1e-4 of it, and such ties are counted.
"""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from support.transformers_decoder import VOCABULARY, our_decoder, transformers_decoder
from transformers import Emu3ForCausalLM, GenerationConfig

from emu3_megatron.generation.generator import generate
from emu3_megatron.generation.jobs import Request
from emu3_megatron.generation.raster import Choice, Raster
from emu3_megatron.generation.sampling import SamplingSettings
from emu3_megatron.grammar import Meta, Vision, open_prompt, vision_prompt
from emu3_megatron.model import Decoder

EOI = VOCABULARY.vision_end


@pytest.fixture(scope="module")
def theirs() -> Emu3ForCausalLM:
    return transformers_decoder()


@pytest.fixture(scope="module")
def ours(mesh, theirs) -> Decoder:
    return our_decoder(theirs)


def vision(meta: Meta, negative: str = "") -> Request:
    prompts = [vision_prompt(VOCABULARY, text, meta) for text in ("a cat on a mat", negative)]
    return Request(*prompts, stop=(EOI,))


def text() -> Request:
    """An answer to pictures."""
    codes = np.arange(6).reshape(2, 3)
    one, other = Vision.image(codes), Vision.image(codes[::-1])
    prompts = [open_prompt(VOCABULARY, parts) for parts in ([one, "and", other], [one])]
    return Request(*prompts, stop=(VOCABULARY.eos,))


@torch.no_grad()
def ties(theirs: Emu3ForCausalLM, request: Request, said: Sequence[int], guidance: float) -> int:
    """How often the token that was said is not the likeliest; AssertionError if it is not close."""
    scores_tv = logits_after(theirs, request.prompt, said)
    if guidance != 1:
        negative_tv = logits_after(theirs, request.negative, said)
        scores_tv = negative_tv + guidance * (scores_tv - negative_tv)
    raster, found, places = Raster(VOCABULARY, request.prompt), 0, 0
    ids = {choice: torch.from_numpy(choice.ids(VOCABULARY)) for choice in Choice}
    for token, scores_v in zip(said, scores_tv, strict=True):
        if isinstance(raster.allowed, Choice):
            lead = scores_v[ids[raster.allowed]].max() - scores_v[token]
            assert lead < 1e-4
            found += int(lead > 0)
            places += 1
        raster.feed(int(token))
    assert places >= len(said) / 4
    return found


def logits_after(theirs: Emu3ForCausalLM, prompt: np.ndarray, said: Sequence[int]) -> torch.Tensor:
    """float32 [t, v]: before each of the tokens that were said."""
    tokens_s = torch.from_numpy(np.append(prompt, said)).long()
    return theirs(tokens_s[None]).logits[0, len(prompt) - 1 : -1]


CASES = {
    "text": (text(), 1.0),
    "text, guided": (text(), 2.0),
    "1x1": (vision(Meta(1, 1)), 3.0),
    "3x5": (vision(Meta(3, 5)), 3.0),
    "17x2, negative": (vision(Meta(17, 2), "blurred"), 3.0),
    "20x31": (vision(Meta(20, 31)), 1.0),
    "clip": (vision(Meta(3, 4, frames=5, fps=6, seconds=3)), 3.0),
}


@pytest.mark.parametrize("name", CASES)
def test_greedy_tokens_are_the_likeliest_by_transformers(ours, theirs, name):
    request, guidance = CASES[name]
    settings = SamplingSettings(guidance, temperature=0)

    (said,) = generate(ours, VOCABULARY, [request], settings, max_tokens=20 * 32 + 2)

    assert ties(theirs, request, said, guidance) <= len(said) / 1e5


def test_in_one_batch_they_are_too(ours, theirs):
    requests = [request for request, _ in CASES.values()]
    settings = SamplingSettings(3.0, temperature=0)

    said = generate(ours, VOCABULARY, requests, settings, max_tokens=100)

    assert sum(ties(theirs, *pair, 3.0) for pair in zip(requests, said, strict=True)) == 0


def in_a_grid(meta: Meta, prompt: int) -> Callable[[int, torch.Tensor], list[int]]:
    """What Emu3's script lets transformers draw: codes, the end of each row, EOF, EOI."""
    codes = list(range(VOCABULARY.first_code, VOCABULARY.size))

    def allowed(_: int, tokens: torch.Tensor) -> list[int]:
        row, column = divmod(len(tokens) - prompt, meta.width + 1)
        if row < meta.height:
            return [VOCABULARY.end_of_line] if column == meta.width else codes
        return [VOCABULARY.end_of_frame if column == 0 else VOCABULARY.vision_end]

    return allowed


@torch.no_grad()
@pytest.mark.parametrize("negative", ["", "blurred, many words of what it must not be"])
def test_guided_images_are_those_of_transformers_token_for_token(ours, theirs, negative):
    meta = Meta(9, 7)
    request = vision(meta, negative)
    prompt, against = (torch.from_numpy(p).long()[None] for p in (request.prompt, request.negative))

    expected = theirs.generate(
        prompt,
        GenerationConfig(
            max_new_tokens=meta.num_tokens + 1,
            do_sample=False,
            guidance_scale=3.0,
            pad_token_id=VOCABULARY.pad,
            eos_token_id=EOI,
        ),
        negative_prompt_ids=against,
        prefix_allowed_tokens_fn=in_a_grid(meta, prompt.shape[1]),
    )
    settings = SamplingSettings(3.0, temperature=0)
    (said,) = generate(ours, VOCABULARY, [request], settings, max_tokens=meta.num_tokens + 1)

    assert said.tolist() == expected[0, prompt.shape[1] :].tolist()
    assert len(np.unique(said)) > 20


@pytest.mark.slow
@pytest.mark.parametrize("grid", [(90, 90), (90, 160)])
def test_large_grids(ours, theirs, grid):
    request = vision(Meta(*grid))
    settings = SamplingSettings(3.0, temperature=0)

    (said,) = generate(ours, VOCABULARY, [request], settings, max_tokens=15_000)

    assert len(said) == grid[0] * (grid[1] + 1) + 2
    assert ties(theirs, request, said, 3.0) <= 1
