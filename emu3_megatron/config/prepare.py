"""Schema of prepare recipes: sources, thresholds, models, sizes.

Emu3's own thresholds are the defaults where it publishes them; a comment says where it does not.
"""

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from emu3_megatron.config.base import Config
from emu3_megatron.config.dialogues import DialoguesConfig, FeaturesConfig
from emu3_megatron.config.filters import ClassifierConfig, PersonalData
from emu3_megatron.config.model import preset_vocabulary
from emu3_megatron.config.presets import PRESETS
from emu3_megatron.vocabulary import Vocabulary


def _path_or_url(value: object) -> object:
    return value if not isinstance(value, str) or "://" in value else Path(value)


Source = Annotated[Path | str, BeforeValidator(_path_or_url)]
"""A path of this machine, or the URL of an object store."""

Kind = Literal["images", "clips", "text", "dialogues", "features"]
# Documents by layout. captioned: a trained caption, then an image or clip; understanding: an image
# or clip right after BOS, then text; text: neither image nor clip. Dialogues about images are in
# `all` alone.
Select = Literal["all", "captioned", "understanding", "text"]


class EndpointConfig(Config):
    """An OpenAI-compatible server that writes captions, as vLLM is."""

    url: str = Field(description="of the server, up to and with /v1")
    model: str = Field(description="name by which the server knows the model")
    prompts: list[str] = Field(
        ["Describe this image in one detailed paragraph."],
        min_length=1,
        description="one caption each; write one in every language wanted",
    )
    concurrency: PositiveInt = Field(8, description="requests at once, for each worker")
    attempts: PositiveInt = Field(4, description="how often one request is tried")
    timeout: PositiveFloat = Field(60, description="seconds a request may take, all of it")
    patience: PositiveFloat = Field(
        600, description="seconds in all to pause before one picture's tries, then the run stops"
    )
    failures: PositiveInt = Field(
        20, description="pictures in a row without a caption that stop the run, for each worker"
    )
    max_tokens: PositiveInt = Field(512, description="longest answer")
    side: PositiveInt = Field(768, description="longer side, in pixels, of the image that is sent")
    key_variable: str | None = Field(
        None, description="environment variable that holds the API key; none without it"
    )


class CaptionConfig(Config):
    """Captions that are there already come first: the manifest's, then the .txt of the same name.

    What is still without one asks the endpoint, if there is one.
    """

    manifest: Path | None = Field(None, description=".jsonl or .parquet, a row for each file")
    file_column: str = Field("file", description="column of the manifest that names the file")
    columns: list[str] = Field(
        ["caption"], description="of the manifest; each one that is filled makes a document"
    )
    endpoint: EndpointConfig | None = Field(
        None, description="writes the captions that are missing; without it nobody does"
    )
    min_characters: PositiveInt | None = Field(None, description="shorter captions are left out")
    min_words: PositiveInt | None = Field(
        None,
        description="shorter captions are left out; scripts without spaces count by the character",
    )
    languages: list[str] | None = Field(
        None,
        min_length=1,
        description="py3langid's codes, as en and zh; captions in others are left out",
    )
    min_language_score: float = Field(
        0.0, ge=0, le=1, description="probability of the language, below which it is left out"
    )


class QualityConfig(Config):
    """The quality score, 0 to 10. Without weights: sharpness and exposure."""

    clip: Path | None = Field(None, description="folder of a CLIP model, transformers' layout")
    head: Path | None = Field(None, description="LAION's aesthetic head over it, a .pth file")


class SelectionConfig(Config):
    """The best by their scores, of what all other rules keep."""

    columns: dict[str, PositiveFloat] = Field(
        min_length=1, description="of scores, each with its weight in the mean"
    )
    table: Path | None = Field(
        None,
        description=".jsonl or .parquet with columns of yours, a row for each file; for each clip "
        "of a video where it has a column start_frame",
    )
    file_column: str = Field("file", description="column of the table that names the file")
    top: float | None = Field(None, gt=0, le=1, description="share that is kept, rounded up")
    at_least: float | None = Field(None, description="mean that is kept, and above")

    @model_validator(mode="after")
    def _one_rule(self) -> "SelectionConfig":
        if (self.top is None) == (self.at_least is None):
            raise ValueError("give one of top and at_least")
        return self


class ImagesConfig(Config):
    """Photos."""

    source: Source = Field(
        description="folder of photos, searched through; also a URL, or tars as "
        "shards/{0000..0009}.tar"
    )
    captions: CaptionConfig = Field(CaptionConfig(), description=CaptionConfig.__doc__)
    min_side: PositiveInt = Field(512, description="pixels of the shorter side of a kept photo")
    max_aspect: PositiveFloat = Field(5.0, description="longer over shorter side of a kept photo")
    quality: QualityConfig = Field(QualityConfig(), description=QualityConfig.__doc__)
    min_quality: float = Field(5.5, description="below it only the rescue rule keeps a photo")
    ocr: bool = Field(True, description="without it no text area is known and nothing is rescued")
    # Emu3 does not publish the limits of its rescue rule; these are ours.
    rescue_colour: NonNegativeFloat = Field(12.0, description="colourfulness from which to rescue")
    rescue_text: float = Field(0.05, ge=0, le=1, description="share of text up to which to rescue")
    near_duplicate_bits: int = Field(
        4,
        ge=-1,
        le=7,
        description="of 64 that may differ where colours are alike; -1 keeps near duplicates",
    )
    watermark: ClassifierConfig | None = Field(
        None, description="measures the probability of a watermark; left out without it"
    )
    max_watermark: float = Field(0.5, ge=0, le=1, description="photos above it are dropped")
    nsfw: ClassifierConfig | None = Field(None, description="the same of what is not safe for work")
    max_nsfw: float = Field(0.5, ge=0, le=1, description="photos above it are dropped")
    select: SelectionConfig | None = Field(None, description=SelectionConfig.__doc__)
    area: PositiveInt = Field(512 * 512, description="pixels an image is encoded at")
    understanding: float = Field(
        0.0, ge=0, le=1, description="share written once more with the caption behind the image"
    )


class ClipsConfig(Config):
    """Videos."""

    source: Source = Field(description="folder of videos, searched through; also a URL, or tars")
    captions: CaptionConfig = Field(CaptionConfig(), description=CaptionConfig.__doc__)
    quality: QualityConfig = Field(QualityConfig(), description=QualityConfig.__doc__)
    # Of the detectors; Emu3 names them and not their thresholds, these are PySceneDetect's.
    content_threshold: PositiveFloat = Field(
        27.0, description="of PySceneDetect's ContentDetector; lower cuts more often"
    )
    fade_threshold: PositiveFloat = Field(
        12.0, description="of its ThresholdDetector: the brightness below which a frame is black"
    )
    min_shot_frames: PositiveInt = Field(8, description="two cuts are never closer")
    min_seconds: NonNegativeFloat = Field(2.0, description="shorter shots are dropped")
    max_seconds: PositiveFloat = Field(20.0, description="longer shots are cut into equal parts")
    sample_fps: PositiveFloat = Field(2.0, description="frames a second that OCR and flow see")
    sample_side: PositiveInt = Field(256, description="shorter side of these frames")
    ocr: bool = Field(True, description="without it no clip is dropped for its text")
    # Emu3 publishes neither how much text is excessive nor its range of flow; these are ours.
    max_text: float = Field(0.15, ge=0, le=1, description="mean share of a frame that is text")
    min_flow: NonNegativeFloat = Field(
        0.003, description="clips that move less are dropped; flow over the shorter side"
    )
    max_flow: PositiveFloat = Field(0.5, description="clips that move more are dropped")
    raft: Path | None = Field(None, description="weights of torchvision's raft_large; or DIS flow")
    min_side: PositiveInt = Field(1, description="pixels of the shorter side of a kept clip")
    min_quality: float = Field(5.0, description="the least of 3 frames")
    watermark: ClassifierConfig | None = Field(
        None, description="measures the probability of a watermark; left out without it"
    )
    max_watermark: float = Field(0.5, ge=0, le=1, description="clips above it are dropped")
    nsfw: ClassifierConfig | None = Field(None, description="the same of what is not safe for work")
    max_nsfw: float = Field(0.5, ge=0, le=1, description="clips above it are dropped")
    select: SelectionConfig | None = Field(None, description=SelectionConfig.__doc__)
    area: PositiveInt = Field(512 * 512, description="pixels a frame is encoded at")
    max_tokens: PositiveInt = Field(
        130_000, description="longer clips leave out frames evenly until they fit"
    )


class TextConfig(Config):
    """Text: .jsonl, .parquet and .txt."""

    source: Source = Field(
        description="folder of text files, searched through; also a URL, or tars"
    )
    column: str = Field("text", description="that holds the text, of .jsonl and .parquet")
    min_characters: PositiveInt = Field(1, description="shorter texts are dropped")
    near_duplicates: float | None = Field(
        None,
        ge=0.5,
        le=1,
        description="share of five-word sequences that two texts have in common, of those in "
        "either, from which the later one is dropped (MinHash); without it only equal ones are",
    )
    languages: list[str] | None = Field(
        None,
        min_length=1,
        description="py3langid's codes, as en and zh; texts in others are dropped",
    )
    min_language_score: float = Field(
        0.0, ge=0, le=1, description="probability of the language, below which it is dropped"
    )
    mask: list[PersonalData] = Field(
        [], description="what a placeholder takes the place of: email, ip, phone"
    )
    range_bytes: PositiveInt = Field(16 << 20, description="of a file, tokenised as one task")


class PacksConfig(Config):
    """One folder of packs, made at the end: packs/NAME.pack."""

    name: str | None = Field(
        None,
        pattern=r"^[\w-][\w.-]*$",
        description="of its folder; kinds, selection and context without it, as images-text-5120",
    )
    context: PositiveInt = Field(description="tokens a sequence")
    kinds: list[Kind] = Field(min_length=1, description="whose shards are packed")
    select: Select = Field("all", description="which of their documents, by layout")
    seed: NonNegativeInt = Field(
        0, description="which equally long documents go together, order of the packs"
    )
    max_documents: PositiveInt = Field(256, description="a sequence takes at most")

    @property
    def folder_name(self) -> str:
        """NAME.pack"""
        selection = [] if self.select == "all" else [self.select]
        return f"{self.name or '-'.join([*self.kinds, *selection, str(self.context)])}.pack"


class RunConfig(Config):
    """How the work is done. Nothing here changes what comes out."""

    executor: Literal["ray", "processes", "local"] = Field(
        "ray",
        description="ray: Ray Data, here or on a cluster; processes: of this machine; local: "
        "one process",
    )
    address: str | None = Field(None, description="of a Ray cluster, as `auto`")
    workers: PositiveInt | None = Field(
        None, description="processes at once; as many as cores without it"
    )
    device: Literal["cpu", "cuda"] = Field("cpu", description="of the vision tokenizer")
    task_items: PositiveInt = Field(64, description="photos that are scored or encoded as one task")
    stall_seconds: PositiveFloat = Field(
        300,
        description="without progress at one item (at one frame of a video), after which it is set "
        "aside; not with executor=local",
    )


class PrepareRecipe(Config):
    """From folders to packs."""

    READER: ClassVar[str] = "emu3 prepare"

    RENAMED: ClassVar[dict[str, str]] = {"run.engine": "run.executor"}

    out: Path = Field(description="folder to write: shards, packs, tables, manifest.json")
    model: str = Field("emu3-8b", description="preset whose vocabulary the shards have")
    codes: PositiveInt | None = Field(None, description="other than the preset's number of codes")
    ranks_file: Path | None = Field(
        None, description="emu3.tiktoken; without it the copy in dashscope's wheel"
    )
    tokenizer: Path | None = Field(None, description="folder of the vision tokenizer")
    holdout: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="share of photos, videos and texts for validation, by groups of near "
        "duplicates; its packs lie in held-out/packs",
    )
    upload: str | None = Field(
        None,
        pattern=r"^[\w+.-]+://.",
        description="URL of a folder in an object store, to which `out` is sent at the end",
    )
    strict: bool = Field(False, description="stop at the first item that cannot be used")
    shard_bytes: PositiveInt = Field(10 * 10**9, description="largest size of a shard")
    images: ImagesConfig | None = Field(None, description="photos; left out without it")
    clips: ClipsConfig | None = Field(None, description="videos; left out without it")
    text: TextConfig | None = Field(None, description="text; left out without it")
    dialogues: DialoguesConfig | None = Field(
        None, description="questions and answers; left out without it"
    )
    features: FeaturesConfig | None = Field(
        None, description="feature files of Emu3's training script; left out without it"
    )
    # Emu3's two stages: text and images, then clips too.
    packs: list[PacksConfig] = Field(
        [
            PacksConfig(context=5120, kinds=["images", "text"]),
            PacksConfig(context=131_072, kinds=["images", "clips", "text"]),
        ],
        description="packs of the shards, made at the end",
    )
    run: RunConfig = Field(RunConfig(), description=RunConfig.__doc__)

    @field_validator("model")
    @classmethod
    def _known(cls, model: str) -> str:
        if model not in PRESETS:
            raise ValueError(f"no such preset; choose one of {', '.join(PRESETS)}")
        return model

    @model_validator(mode="after")
    def _packs_have_names_of_their_own(self) -> "PrepareRecipe":
        names = [packs.folder_name for packs in self.packs]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"packs: two of them are {name}; give each a name of its own")
        return self

    @property
    def kinds(self) -> list[Kind]:
        """Those that the recipe has, in the order in which they are prepared."""
        every: tuple[Kind, ...] = ("images", "clips", "text", "dialogues", "features")
        return [kind for kind in every if getattr(self, kind) is not None]

    def vocabulary(self) -> Vocabulary:
        """The one that the shards have."""
        return preset_vocabulary(self.model, self.codes, self.ranks_file)
