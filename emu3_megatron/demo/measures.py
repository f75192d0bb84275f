"""Measures what each stage of the demo changed, with the models that it left.

Every model draws from the same captions and seeds, and answers the same questions. Losses, captions
and answers are about views of the photos that no model was trained on.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from emu3_megatron import parallel
from emu3_megatron.demo.documents import Trained, asked, documents, trained
from emu3_megatron.demo.material import PHOTOS
from emu3_megatron.demo.pretraining import AREA
from emu3_megatron.demo.results import (
    ANSWERERS,
    DESCRIBERS,
    FILMERS,
    MODELS,
    PAINTERS,
    Generated,
    Later,
    Results,
)
from emu3_megatron.demo.work import Work
from emu3_megatron.generation.answers import describe, say
from emu3_megatron.generation.images import VisionPrompt, draw
from emu3_megatron.generation.sampling import SamplingSettings
from emu3_megatron.grammar import Document, Meta
from emu3_megatron.media.files import IMAGE_SUFFIXES, find_files
from emu3_megatron.media.images import to_image
from emu3_megatron.model import Decoder, Inputs, SequenceLayout
from emu3_megatron.model.opening import open_decoder
from emu3_megatron.parallel import Mesh
from emu3_megatron.prepare.scores.colour import colourfulness
from emu3_megatron.vision.files import At
from emu3_megatron.vision.measures import reconstruction
from emu3_megatron.vision.measures.reconstruction import codec_of, means
from emu3_megatron.vision.tokenizer import VisionTokenizer
from emu3_megatron.vocabulary import CODE, TEXT, Vocabulary

# The likeliest token each time: what the decoder has learnt by heart, nothing drawn by lot.
GREEDY = SamplingSettings(guidance=1.0, temperature=0.0)
# By lot, with other seeds than those of the samples that preferences were trained on.
BY_LOT = SamplingSettings(guidance=1.0, temperature=0.4, seed=50_000)
GRID = Meta(16, 16)
EACH = 4  # pictures of a caption
_LONGEST = 80  # tokens of a caption or an answer


def measure(work: Work, has_later: bool) -> Results:
    out, tokenizer = work.out, VisionTokenizer.load(work.tokenizer)
    mesh = parallel.start()
    mesh.seed(0, 0)
    first = _measure_first(out, mesh)
    later = _measure_later(out, mesh, tokenizer) if has_later else None
    parallel.stop()
    psnr = mean_psnr(out / "photos", tokenizer, AREA)
    return Results(out, psnr, first, later, work.seconds, work.commands)


def mean_psnr(photos: Path, tokenizer: VisionTokenizer, area: int) -> float:
    """Mean over photos, in dB, of what the tokenizer keeps of them."""
    files = find_files(photos, IMAGE_SUFFIXES)
    measured = reconstruction.measure(codec_of(tokenizer), files, At(area))
    return means(measured.kept)["PSNR"]


def _measure_first(out: Path, mesh: Mesh) -> Generated:
    """Everything greedy, from the last checkpoint of stage 1."""
    decoder, vocabulary = _open(out, "stage-1", mesh)
    images = trained(out / "data", "images")
    prompts = [VisionPrompt(t.caption, t.vision.meta) for t in images]
    drawn = draw(decoder, vocabulary, prompts, GREEDY, progress=True)
    captions = _describe(decoder, vocabulary, images)
    (clip,) = trained(out / "data", "clips")
    return Generated(images, drawn, captions, clip, _go_on(decoder, vocabulary, clip))


def _open(out: Path, model: str, mesh: Mesh) -> tuple[Decoder, Vocabulary]:
    decoder, recipe = open_decoder(out / MODELS[model], mesh)
    return decoder, recipe.model.vocabulary()


def _describe(decoder: Decoder, vocabulary: Vocabulary, pictures: Sequence[Trained]) -> list[str]:
    shown = [picture.vision for picture in pictures]
    return describe(decoder, vocabulary, shown, GREEDY, max_tokens=_LONGEST)


def _go_on(decoder: Decoder, vocabulary: Vocabulary, clip: Trained) -> np.ndarray:
    """The clip from its first half, codes [f, h, w]."""
    beginning = clip.vision.codes[: clip.vision.meta.frames // 2]
    prompt = VisionPrompt(clip.caption, clip.vision.meta, first_frames=beginning)
    return draw(decoder, vocabulary, [prompt], GREEDY)[0]


def _measure_later(out: Path, mesh: Mesh, tokenizer: VisionTokenizer) -> Later:
    (film,) = trained(out / "data-views", "clips")
    views = trained(out / "data-held-out", "images")
    later = Later(film, views, asked(out / "data-dialogues-held-out"))
    for model in MODELS:
        print(f"   {model}", flush=True)
        decoder, vocabulary = _open(out, model, mesh)
        later.losses[model] = _losses(out, decoder)
        if model in PAINTERS:
            later.drawn[model] = _draw(decoder, vocabulary, tokenizer)
            later.colour[model] = [list(map(colourfulness, of)) for of in later.drawn[model]]
        if model in FILMERS:
            later.continued[model] = _go_on(decoder, vocabulary, film)
        if model in DESCRIBERS:
            later.captions[model] = _describe(decoder, vocabulary, views)
        if model in ANSWERERS:
            prompts = [asked.prompt for asked in later.asked]
            said = say(decoder, vocabulary, prompts, GREEDY, max_tokens=_LONGEST)
            later.answers[model] = said
    return later


def _draw(
    decoder: Decoder, vocabulary: Vocabulary, tokenizer: VisionTokenizer
) -> list[list[Image.Image]]:
    """Some pictures of each caption."""
    prompts = [VisionPrompt(photo.caption, GRID) for photo in PHOTOS for _ in range(EACH)]
    drawn = draw(decoder, vocabulary, prompts, BY_LOT)
    pixels = [tokenizer.decode_images(torch.from_numpy(codes_1hw)) for codes_1hw in drawn]
    pictures = [to_image(pixels_nchw[0]) for pixels_nchw in pixels]
    return [pictures[i : i + EACH] for i in range(0, len(pictures), EACH)]


def _losses(out: Path, decoder: Decoder) -> dict[str, float]:
    """Mean negative log-likelihood of tokens of a class, in nats."""
    vocabulary, pictures = documents(out / "data-held-out", "images")
    _, colourful = documents(out / "data-quality-held-out", "images")
    _, dialogues = documents(out / "data-dialogues-held-out", "dialogues")
    captioned = lambda found: [d for d in found if len(d.spans[0].tokens) > 1]  # BOS caption
    described = [d for d in pictures if len(d.spans[0].tokens) == 1]  # BOS, the picture
    return {
        "codes of views": _nll(decoder, vocabulary, captioned(pictures), CODE),
        "codes of the most colourful": _nll(decoder, vocabulary, captioned(colourful), CODE),
        "captions behind views": _nll(decoder, vocabulary, described, TEXT),
        "answers about views": _nll(decoder, vocabulary, dialogues, TEXT),
    }


@torch.no_grad()
def _nll(
    decoder: Decoder, vocabulary: Vocabulary, found: Sequence[Document], counted: int
) -> float:
    parts = []
    for document in found:
        tokens_s = torch.from_numpy(document.tokens.astype(np.int64))
        length = len(tokens_s) - 1
        inputs = Inputs(
            tokens_s[None, :-1],
            torch.arange(length)[None],
            SequenceLayout.of_documents([[0, length]]),
            labels_bs=tokens_s[None, 1:],
        )
        log_prob_s = decoder(inputs, "log_probabilities").log_prob[0]
        parts.append(log_prob_s[_counted(vocabulary, document, counted)[1:]].double())
    return -float(torch.cat(parts).mean())


def _counted(vocabulary: Vocabulary, document: Document, counted: int) -> Tensor:
    """Which tokens are trained and of the class; of text the size of a grid is none."""
    marks = []
    for span in document.spans:
        is_vision = span.tokens[0] == vocabulary.vision_start
        is_class = vocabulary.token_class(span.tokens) == counted
        trained_here = span.trained and is_vision == (counted == CODE)
        marks.append(is_class & trained_here)
    return torch.from_numpy(np.concatenate(marks))
