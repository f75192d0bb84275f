"""Documents: how text, images and clips are laid out as tokens, and how they are parsed.

An image is `BOI {h}*{w} IMG`, its rows of codes each closed by EOL, then EOF and EOI
(baaivision/Emu3, emu3/mllm/processing_emu3.py). Emu3 does not publish the layout of clips; ours is
`BOI {h}*{w}*{f} {fps}fps {seconds}s IMG`, each latent frame laid out like an image's rows and
closed by EOF, then EOI (docs/format.md).
"""

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from emu3_megatron.errors import InputError
from emu3_megatron.vocabulary import SYSTEM_TEXT, TEXT, Vocabulary


class GrammarError(InputError):
    """Tokens that are not a well-formed document."""


@dataclass(frozen=True)
class Span:
    """A stretch of one role: trained, or context that is read and never trained."""

    tokens: np.ndarray  # int32 [n]
    trained: bool = True


@dataclass(frozen=True)
class Document:
    """Spans in order. A vision span, BOI to EOI, is always a span of its own."""

    spans: tuple[Span, ...]

    @property
    def tokens(self) -> np.ndarray:
        """All tokens, int32 [n]."""
        return np.concatenate([span.tokens for span in self.spans])

    def __len__(self) -> int:
        return sum(len(span.tokens) for span in self.spans)


@dataclass(frozen=True)
class Meta:
    """What the plain text between BOI and IMG says.

    Attributes:
        height, width: of the grid, in tokens.
        frames: latent frames; an image has one.
        fps, seconds: of the clip's pixels; None for an image.
    """

    height: int
    width: int
    frames: int = 1
    fps: float | None = None
    seconds: float | None = None

    def __str__(self) -> str:
        if self.fps is None:
            return f"{self.height}*{self.width}"
        size = f"{self.height}*{self.width}*{self.frames}"
        return f"{size} {self.fps:g}fps {self.seconds:g}s"

    @classmethod
    def parse(cls, text: str) -> "Meta":
        """Raises GrammarError on anything that `str` does not write."""
        match = re.fullmatch(r"(\d+)\*(\d+)(?:\*(\d+) ([\d.e+]+)fps ([\d.e+-]+)s)?", text)
        try:
            height, width, frames, fps, seconds = match.groups()  # type: ignore[union-attr]
            clip = (int(frames), float(fps), float(seconds)) if frames else (1, None, None)
            meta = cls(int(height), int(width), *clip)
        except (AttributeError, ValueError):
            raise GrammarError(f"no grid size between BOI and IMG: {text[:40]!r}") from None
        if min(meta.height, meta.width, meta.frames) < 1:
            raise GrammarError(f"an empty grid: {text!r}")
        if str(meta) != text:
            raise GrammarError(f"a grid size is written {meta}, not {text[:40]!r}")
        return meta

    @property
    def num_tokens(self) -> int:
        """Codes, EOLs and EOFs between IMG and EOI."""
        return self.frames * (self.height * (self.width + 1) + 1)


@dataclass(frozen=True)
class Vision:
    """An image or a clip as part of a document."""

    meta: Meta
    codes: np.ndarray  # integers [frames, height, width]

    @classmethod
    def image(cls, codes_hw: np.ndarray) -> "Vision":
        return cls(image_meta(codes_hw), codes_hw[None])

    @classmethod
    def clip(cls, codes_fhw: np.ndarray, fps: float, seconds: float) -> "Vision":
        """See `captioned_clip` for the arguments."""
        frames, height, width = codes_fhw.shape
        return cls(Meta(height, width, frames, fps, seconds), codes_fhw)


@dataclass(frozen=True)
class Turn:
    """A question and its answer.

    Attributes:
        question: texts, images and clips, in order.
        answer: None when it is to be generated.
    """

    question: Sequence[str | Vision]
    answer: str | None


def vision_span(vocabulary: Vocabulary, meta: Meta, codes_fhw: np.ndarray) -> np.ndarray:
    """Lay out codes from BOI to EOI.

    Args:
        codes_fhw: visual codes, [frames, height, width], as `meta` says.

    Returns:
        int32 [2 + len(meta text) + 1 + meta.num_tokens]. A 64 x 64 image takes 4,169.

    Raises:
        InputError: the grid is empty or not of `meta`'s shape, or a code outside the codebook.
    """
    if codes_fhw.shape != (meta.frames, meta.height, meta.width):
        raise InputError(f"codes of shape {codes_fhw.shape} do not fit the grid {meta}")
    if not codes_fhw.size:
        raise InputError(f"an empty grid of codes: {meta}")
    if not 0 <= codes_fhw.min() <= codes_fhw.max() < vocabulary.num_codes:
        raise InputError(
            f"codes {codes_fhw.min()}..{codes_fhw.max()} lie outside the codebook of "
            f"{vocabulary.num_codes:,}; use the tokenizer that belongs to this vocabulary"
        )
    return np.concatenate(
        [
            vision_prefix(vocabulary, meta),
            _lay_out(vocabulary, codes_fhw),
            np.array([vocabulary.vision_end], np.int32),
        ]
    )


def vision_prefix(vocabulary: Vocabulary, meta: Meta) -> np.ndarray:
    """BOI, meta text, IMG: what stands before the first code."""
    return np.concatenate(
        [
            np.array([vocabulary.vision_start], np.int32),
            vocabulary.encode(str(meta)),
            np.array([vocabulary.codes_follow], np.int32),
        ]
    )


def _lay_out(vocabulary: Vocabulary, codes_fhw: np.ndarray) -> np.ndarray:
    frames, height, width = codes_fhw.shape
    rows = np.full((frames, height, width + 1), vocabulary.end_of_line, np.int32)
    rows[:, :, :width] = codes_fhw
    rows[:, :, :width] += vocabulary.first_code
    ends = np.full((frames, 1), vocabulary.end_of_frame, np.int32)
    return np.concatenate([rows.reshape(frames, -1), ends], axis=1).reshape(-1)


def image_meta(codes_hw: np.ndarray) -> Meta:
    return Meta(*codes_hw.shape)


def captioned_image(vocabulary: Vocabulary, caption: str, codes_hw: np.ndarray) -> Document:
    """BOS caption, the image, EOS: text to image."""
    return _captioned(vocabulary, caption, Vision.image(codes_hw))


def captioned_clip(
    vocabulary: Vocabulary, caption: str, codes_fhw: np.ndarray, fps: float, seconds: float
) -> Document:
    """BOS caption, the clip, EOS.

    Args:
        codes_fhw: [latent frames, height, width].
        fps: pixel frames a second of the clip that was encoded.
        seconds: its duration.
    """
    return _captioned(vocabulary, caption, Vision.clip(codes_fhw, fps, seconds))


def _captioned(vocabulary: Vocabulary, caption: str, vision: Vision) -> Document:
    return Document(
        (
            Span(_text(vocabulary, caption, before=[vocabulary.bos])),
            Span(vision_span(vocabulary, vision.meta, vision.codes)),
            Span(np.array([vocabulary.eos], np.int32)),
        )
    )


def understanding(vocabulary: Vocabulary, codes_hw: np.ndarray, caption: str) -> Document:
    """BOS, the image, then its caption and EOS: image to text."""
    return Document(
        (
            Span(np.array([vocabulary.bos], np.int32)),
            Span(vision_span(vocabulary, image_meta(codes_hw), codes_hw[None])),
            Span(_text(vocabulary, caption, after=[vocabulary.eos])),
        )
    )


def plain_text(vocabulary: Vocabulary, text: str) -> Document:
    """BOS text EOS."""
    return Document((Span(_text(vocabulary, text, [vocabulary.bos], [vocabulary.eos])),))


def dialogue(vocabulary: Vocabulary, turns: Sequence[Turn], system: str = SYSTEM_TEXT) -> Document:
    """Emu3-Chat's template; only answers, each closed by EOS, are trained.

    `BOS You are a helpful assistant. USER: {question}. ASSISTANT:` with the literal full stop after
    the question and no space after the colon, images where they stand in the question
    (processing_emu3.py has one, in front). Further turns, which Emu3 does not publish, go on with
    ` USER: ` after the answer's EOS. A last turn without an answer leaves the document open for
    generation.

    Args:
        system: stands in the place of `You are a helpful assistant.`
    """
    spans: list[Span] = []
    for turn in turns:
        assert not isinstance(turn.question, str), "a question is a sequence of parts"
        opening = " USER: " if spans else f"{system} USER: "
        before = [] if spans else [vocabulary.bos]
        spans += _spans(vocabulary, [opening, *turn.question, ". ASSISTANT:"], before)
        if turn.answer is not None:
            spans.append(Span(_text(vocabulary, turn.answer, after=[vocabulary.eos])))
    return Document(tuple(spans))


def _spans(
    vocabulary: Vocabulary, parts: Sequence[str | Vision], before: Sequence[int]
) -> Iterator[Span]:
    """Context spans of the parts; texts side by side are one, as the text encoding sees them."""
    for is_text, group in itertools.groupby(parts, lambda part: isinstance(part, str)):
        if is_text:
            yield Span(_text(vocabulary, "".join(map(str, group)), before), trained=False)
            before = []
            continue
        for vision in group:
            assert isinstance(vision, Vision)
            yield Span(vision_span(vocabulary, vision.meta, vision.codes), trained=False)


def vision_prompt(vocabulary: Vocabulary, caption: str, meta: Meta) -> np.ndarray:
    """BOS caption BOI meta IMG: the model goes on with the first code."""
    return np.concatenate(
        [_text(vocabulary, caption, before=[vocabulary.bos]), vision_prefix(vocabulary, meta)]
    )


def open_prompt(vocabulary: Vocabulary, parts: Sequence[str | Vision]) -> np.ndarray:
    """BOS and the parts, in order: the model goes on with text.

    Of an image or a clip alone that is its caption.
    """
    spans = _spans(vocabulary, ["", *parts], before=[vocabulary.bos])
    return np.concatenate([span.tokens for span in spans])


def _text(
    vocabulary: Vocabulary, text: str, before: Sequence[int] = (), after: Sequence[int] = ()
) -> np.ndarray:
    return np.concatenate(
        [np.array(before, np.int32), vocabulary.encode(text), np.array(after, np.int32)]
    )


def parse(vocabulary: Vocabulary, tokens: np.ndarray) -> list[str | Vision]:
    """Take a document apart, in order: texts as `str`, images and clips as `Vision`.

    BOS, EOS and padding are dropped.

    Raises:
        GrammarError: a vision span is broken, or its tokens stand outside of one; the message says
            at which token.
    """
    tokens = np.asarray(tokens)
    parts: list[str | Vision] = []
    position = 0
    for start in np.flatnonzero(tokens == vocabulary.vision_start).tolist():
        parts.append(_parse_text(vocabulary, tokens, position, start))
        vision, position = _parse_vision(vocabulary, tokens, start)
        parts.append(vision)
    parts.append(_parse_text(vocabulary, tokens, position, len(tokens)))
    return [part for part in parts if part != ""]


def metas(vocabulary: Vocabulary, tokens: np.ndarray) -> Iterator[Meta]:
    """The grid of each image and clip, from its text alone; raises GrammarError as `parse`."""
    for start in np.flatnonzero(tokens == vocabulary.vision_start).tolist():
        length = int(np.argmax(tokens[start:] == vocabulary.codes_follow))
        yield Meta.parse(vocabulary.decode(tokens[start + 1 : start + length]))


def _parse_text(vocabulary: Vocabulary, tokens: np.ndarray, start: int, end: int) -> str:
    text = tokens[start:end]
    misplaced = np.flatnonzero(vocabulary.token_class(text) != TEXT)
    if len(misplaced):
        position = start + int(misplaced[0])
        raise GrammarError(f"token {position}: a code or vision mark where text belongs")
    return vocabulary.decode(text)


def _parse_vision(vocabulary: Vocabulary, tokens: np.ndarray, start: int) -> tuple[Vision, int]:
    """The vision span that begins with BOI at `start`, and the position after its EOI."""
    marks = np.flatnonzero(tokens[start:] == vocabulary.codes_follow)
    if not len(marks):
        raise GrammarError(f"token {start}: BOI without IMG")
    first = start + int(marks[0]) + 1
    try:
        meta = Meta.parse(_parse_text(vocabulary, tokens, start + 1, first - 1))
    except GrammarError as error:
        raise GrammarError(f"token {start}: BOI, and then {error}") from None
    end = first + meta.num_tokens
    if end >= len(tokens) or tokens[end] != vocabulary.vision_end:
        raise GrammarError(f"token {end}: no EOI after the codes of a {meta} grid")
    rows, shape = tokens[first:end], (meta.frames, meta.height, meta.width)
    expected = _lay_out(vocabulary, np.zeros(shape, np.int32))
    is_code = expected == vocabulary.first_code
    in_codebook = (rows >= vocabulary.first_code) & (rows < vocabulary.size)
    fits = np.where(is_code, in_codebook, rows == expected)
    if not fits.all():
        raise GrammarError(
            f"token {first + int(np.argmin(fits))}: the rows of a {meta} grid are broken"
        )
    codes = rows[is_code].astype(np.int64) - vocabulary.first_code
    return Vision(meta, codes.reshape(shape)), end + 1
