"""Token ids: the only place that defines them.

Ids run: text ranks, then 211 special tokens, then one id for each visual code. At Emu3's own size
that is 151,643 + 211 + 32,768 = 184,622, with the ids of baaivision/Emu3 (`emu3.tiktoken` and
`emu3_vision_tokens.txt`); the tiny vocabulary is the same class over 256 bytes and few codes.
"""

import hashlib
import importlib.util
import itertools
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np

from emu3_megatron.errors import InputError

SYSTEM_TEXT = "You are a helpful assistant."  # with which Emu3-Chat's dialogues begin

TEXT, STRUCTURE, CODE = 0, 1, 2
# Classes of tokens in the order of those numbers, with the weight that Emu3 gives their labels.
CLASS_WEIGHTS = {"text": 1.0, "structure": 1.0, "code": 0.5}
CLASS_NAMES = tuple(CLASS_WEIGHTS)

_NFC_PIECE = 1024  # characters, or a little more
# ASCII, kana, ideographs and Hangul syllables: nothing before them changes with them.
_STANDS_ALONE = re.compile("[\0-\x7f\u3041-\u3096\u30a1-\u30fa\u4e00-\u9fff\uac00-\ud7a3]")

# A numpy array or a torch tensor: this module needs neither to be imported by the other's users.
Ids = TypeVar("Ids")

QWEN_RANKS_SHA256 = "b2b1b8dfb5cc5f024bafc373121c6aba3f66f9a5a0269e243470a1de16a33186"
_QWEN_PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+"
)
_QWEN_SPACES = r"\s+(?!\S)|\s+"
_QWEN_SPLIT = f"{_QWEN_PIECES}|{_QWEN_SPACES}"
# Splits alike: a group without look-ahead tiktoken's engine hands to a faster one as a whole.
_QWEN_FAST_SPLIT = f"(?:{_QWEN_PIECES})|{_QWEN_SPACES}"
# What `\s` means to tiktoken's engine; Python's has four control characters more.
_SPACES = "\t\n\v\f\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
# From this length on a piece of white space is found without tiktoken, whose engine keeps a state
# for each character before a look-ahead and fails at a million. No other pattern looks ahead.
_MANY_SPACES = 100_000


class TextEncoding(Protocol):
    """Text to ids below `num_ranks`, and back.

    Attributes:
        split_pattern: cuts text into the pieces inside which bytes are merged; None: nothing is.
    """

    num_ranks: int
    name: str
    split_pattern: str | None

    def check(self) -> None:
        """Raises InputError when what it reads its ranks from is not there or holds others."""
        ...

    def encode(self, text: str, in_nfc: bool = False) -> np.ndarray:
        """Ids, int32, of the text in NFC, in which it may be already."""
        ...

    def decode(self, ids: Sequence[int]) -> str: ...

    def tokens(self) -> list[bytes]:
        """The bytes of each id."""
        ...


class ByteEncoding:
    """UTF-8 bytes: a text vocabulary of 256 that needs no file."""

    num_ranks = 256
    name = "bytes"
    split_pattern: str | None = None

    def check(self) -> None:
        pass

    def encode(self, text: str, in_nfc: bool = False) -> np.ndarray:
        utf8 = (text if in_nfc else nfc(text)).encode(errors="replace")
        return np.frombuffer(utf8, np.uint8).astype(np.int32)

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(ids).decode(errors="replace")

    def tokens(self) -> list[bytes]:
        return [bytes([i]) for i in range(256)]


def nfc(text: str) -> str:
    """The text in NFC, in a time that grows with its length alone.

    `unicodedata` takes the square of the length of a run of combining marks that it has to put in
    order. So the text is cut before letters that stand alone; what cannot be cut is put in order
    here first.
    """
    if text.isascii():
        return text
    pieces, start = [], 0
    while start < len(text):
        found = _STANDS_ALONE.search(text, start + _NFC_PIECE)
        end = found.start() if found else len(text)
        piece = text[start:end]
        in_order = piece if len(piece) <= 2 * _NFC_PIECE else _marks_in_order(piece)
        pieces.append(unicodedata.normalize("NFC", in_order))
        start = end
    return "".join(pieces)


def _marks_in_order(text: str) -> str:
    """The text decomposed, each run of combining marks in canonical order."""
    parts = (one for character in text for one in unicodedata.normalize("NFD", character))
    runs = itertools.groupby(parts, key=lambda part: unicodedata.combining(part) > 0)
    return "".join(
        "".join(sorted(run, key=unicodedata.combining) if are_marks else run)
        for are_marks, run in runs
    )


class QwenEncoding:
    """The Qwen byte-BPE of Emu3: NFC, then tiktoken over 151,643 ranks.

    Special tokens are never read out of text: a caption that spells one stays plain text.

    Args:
        ranks_file: `emu3.tiktoken` or `qwen.tiktoken`; without it the one that the `dashscope`
            wheel carries. It is read when text is first encoded or decoded.

    Raises:
        InputError: at that time, there is no such file, or it holds other ranks.
    """

    num_ranks = 151_643
    name = "qwen"
    split_pattern: str | None = _QWEN_SPLIT

    def __init__(self, ranks_file: str | Path | None = None):
        self.ranks_file = ranks_file

    def check(self) -> None:
        self._ranks_path()

    def _ranks_path(self) -> Path:
        path = Path(self.ranks_file) if self.ranks_file else _shipped_ranks()
        if not path.is_file():
            raise InputError(f"{path}: no such file; give the path of emu3.tiktoken")
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if digest != QWEN_RANKS_SHA256:
            raise InputError(
                f"{path}: not Emu3's text vocabulary (sha256 {digest[:12]}…, expected "
                f"{QWEN_RANKS_SHA256[:12]}…); give emu3.tiktoken"
            )
        return path

    @cached_property
    def _bpe(self):  # type: ignore[no-untyped-def]
        import tiktoken
        from tiktoken.load import load_tiktoken_bpe

        ranks = load_tiktoken_bpe(str(self._ranks_path()))
        return tiktoken.Encoding(
            "emu3",
            pat_str=_QWEN_FAST_SPLIT,
            mergeable_ranks=ranks,
            special_tokens={"<|endoftext|>": len(ranks)},  # never read; without any it is slow
        )

    def encode(self, text: str, in_nfc: bool = False) -> np.ndarray:
        text = text if in_nfc else nfc(text)
        ids, done = [], 0
        for first, end in _pieces_of_many_spaces(text):
            ids.append(self._encode(text[done:first]))
            ids.append(np.array(self._bpe._encode_single_piece(text[first:end]), np.int32))
            done = end
        return np.concatenate([*ids, self._encode(text[done:])])

    def _encode(self, text: str) -> np.ndarray:
        try:
            ids = self._bpe.encode_to_numpy(text, disallowed_special=())
        except UnicodeEncodeError:  # a lone surrogate becomes a mark
            return self._encode(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))
        return ids.view(np.int32)

    def decode(self, ids: Sequence[int]) -> str:
        return self._bpe.decode(list(ids), errors="replace")

    def tokens(self) -> list[bytes]:
        return [self._bpe.decode_single_token_bytes(i) for i in range(self.num_ranks)]


def _pieces_of_many_spaces(text: str) -> Iterator[tuple[int, int]]:
    """First and end of each piece of many spaces that the pattern `\\s+(?!\\S)` splits off.

    White space up to a newline is a piece of another pattern. Of what follows, the last character
    belongs to the next piece, unless it ends the text.
    """
    blocks = range(0, len(text), _MANY_SPACES)
    if not any(text[i : i + _MANY_SPACES].isspace() for i in blocks):  # nearly always, and fast
        return
    spaces = _SPACES.replace("\n", "").replace("\r", "")
    for found in re.finditer(rf"[{spaces}]{{{_MANY_SPACES},}}+(?![\r\n])", text):
        yield found.start(), found.end() - (found.end() < len(text))


def _shipped_ranks() -> Path:
    spec = importlib.util.find_spec("dashscope")
    if spec is None or spec.origin is None:
        raise InputError(
            "no text vocabulary: give the path of emu3.tiktoken as model.ranks_file (--ranks-file) "
            "or `pip install --no-deps dashscope`, whose wheel carries the same file"
        )
    return Path(spec.origin).parent / "resources" / "qwen.tiktoken"


@dataclass(frozen=True)
class Vocabulary:
    """Ids of text, special tokens and visual codes.

    The surface names of the special tokens mislead (`<|image token|>` is the paper's [SOT], not a
    placeholder), so the attributes say what each one does.
    """

    encoding: TextEncoding
    num_codes: int

    num_specials = 211

    @classmethod
    def emu3(cls, ranks_file: str | Path | None = None) -> "Vocabulary":
        """Emu3's own 184,622 ids."""
        return cls(QwenEncoding(ranks_file), 32_768)

    @classmethod
    def tiny(cls, num_codes: int = 512) -> "Vocabulary":
        """Bytes and a few codes, for tests and the demo on a CPU."""
        return cls(ByteEncoding(), num_codes)

    @property
    def num_text(self) -> int:
        return self.encoding.num_ranks

    def _special(self, index: int) -> int:
        return self.num_text + index

    @property
    def pad(self) -> int:
        """<|endoftext|>"""
        return self._special(0)

    @property
    def image_placeholder(self) -> int:
        """<|extra_0|>: stands for each code of an image in the prompts of transformers."""
        return self._special(3)

    @property
    def end_of_line(self) -> int:
        """<|extra_200|>: closes every row of codes, the last included."""
        return self._special(203)

    @property
    def end_of_frame(self) -> int:
        """<|extra_201|>: closes every frame."""
        return self._special(204)

    @property
    def bos(self) -> int:
        """<|extra_203|>"""
        return self._special(206)

    @property
    def eos(self) -> int:
        """<|extra_204|>"""
        return self._special(207)

    @property
    def codes_follow(self) -> int:
        """<|image token|>, the paper's [SOT]: the meta text is over, codes follow."""
        return self._special(208)

    @property
    def vision_start(self) -> int:
        """<|image start|>, the paper's [SOV]: the meta text follows."""
        return self._special(209)

    @property
    def vision_end(self) -> int:
        """<|image end|>, the paper's [EOV]."""
        return self._special(210)

    @property
    def first_code(self) -> int:
        """The id of visual code 0."""
        return self.num_text + self.num_specials

    @property
    def size(self) -> int:
        return self.first_code + self.num_codes

    def surfaces(self) -> list[str]:
        """How Emu3's tokenizer spells the ids behind the text, in their order."""
        specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
        specials += [f"<|extra_{i}|>" for i in range(205)]
        specials += ["<|image token|>", "<|image start|>", "<|image end|>"]
        return specials + [f"<|visual token {code:06d}|>" for code in range(self.num_codes)]

    def padded_size(self, tensor_parallel: int) -> int:
        """Rows of embedding and head when each of `tensor_parallel` ranks holds k x 128 of them."""
        multiple = 128 * tensor_parallel
        return -(-self.size // multiple) * multiple

    @property
    def structure(self) -> tuple[int, ...]:
        """The tokens that lay out vision. BOS and EOS count as text: they also frame answers."""
        return (
            self.vision_start,
            self.codes_follow,
            self.end_of_line,
            self.end_of_frame,
            self.vision_end,
        )

    def token_class(self, ids: Ids) -> Ids:
        """Class of each id, elementwise: TEXT, STRUCTURE or CODE.

        Args:
            ids: integer array or tensor of any shape.

        Returns:
            Values 0, 1, 2 with the shape and kind of `ids`.
        """
        structure = ids == self.structure[0]
        for token in self.structure[1:]:
            structure = structure | (ids == token)  # type: ignore[operator]
        return STRUCTURE * structure + CODE * (ids >= self.first_code)  # type: ignore[operator,return-value]

    def encode(self, text: str, in_nfc: bool = False) -> np.ndarray:
        """Text to int32 ids.

        Args:
            in_nfc: the text is in NFC already, which is not done again then.
        """
        return self.encoding.encode(text, in_nfc)

    def decode(self, ids: Iterable[int]) -> str:
        """Text ids back to text; ids that are not text are left out."""
        return self.encoding.decode([int(i) for i in ids if i < self.num_text])

    def fingerprint(self) -> str:
        """Equal for two vocabularies exactly when their ids mean the same."""
        ranks = QWEN_RANKS_SHA256 if self.encoding.name == "qwen" else self.encoding.name
        return hashlib.sha256(f"{ranks}/{self.num_specials}/{self.num_codes}".encode()).hexdigest()
