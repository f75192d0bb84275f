"""Schema of recipes that train the vision tokenizer."""

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from pydantic import model_validator as validator

from emu3_megatron.config.base import REQUIRED, Config, fixed, free, semantic
from emu3_megatron.config.runs import EvaluationConfig, GuardConfig, RunConfig
from emu3_megatron.config.schedule import AnySchedule
from emu3_megatron.config.tokenizer import TokenizerNetwork
from emu3_megatron.config.tokenizer_losses import AdversarialConfig, LossConfig


class TokenizerRunConfig(RunConfig):
    """Where a run lives, how long it is, what it starts from."""

    init_from: Path | None = free(
        None, "tokenizer whose weights and codes a new run starts from: its folder, or a run's"
    )


class TokenizerData(Config):
    """What the tokenizer sees. Photos and clips are read as `emu3 prepare` reads them."""

    images: Path = free(REQUIRED, "folder of photos, searched through")
    clips: Path | None = free(None, "folder of clips; photos alone without it")
    content: str | None = semantic(
        None, "hash of the files' names and sizes; filled in when a run starts"
    )
    area: PositiveInt = semantic(262_144, "pixels of a photo or frame after its resize", ge=64)
    zoom: float = semantic(
        1.0, "a sample is resized to area x a random factor between 1/zoom and zoom", ge=1, le=16
    )
    crop: PositiveInt | None = semantic(256, "square side; null: whole photos", ge=8, multiple_of=8)
    flip: bool = semantic(False, "half of the samples are mirrored left to right")
    recolour: float = semantic(
        0,
        "share of samples of other colours: channels swapped, contrast and brightness",
        ge=0,
        le=1,
    )
    clip_share: float | None = semantic(
        None,
        "share of samples that are clips; a quarter by default where there are clips",
        ge=0,
        le=1,
    )
    clip_frames: PositiveInt = semantic(8, "frames of a clip sample", ge=4, multiple_of=4)
    clip_fps: PositiveFloat = semantic(12, "frames a second to take from clips")
    workers: NonNegativeInt = free(2, "processes that read ahead on each rank; 0 reads in the rank")

    @validator(mode="after")
    def _clips_for_their_share(self) -> "TokenizerData":
        if self.clip_share and self.clips is None:
            raise ValueError(
                f"clip_share={self.clip_share} without clips; name their folder, or leave "
                "clip_share out"
            )
        return self

    @property
    def shortest_side(self) -> tuple[int, str]:
        """The side of the smallest square sample, and the recipe's keys that decide it."""
        side = int((self.area / self.zoom) ** 0.5)
        if self.crop and self.crop <= side:
            return self.crop, "data.crop"
        return side, "data.area" if self.zoom == 1 else "data.area / data.zoom"

    @property
    def share_of_clips(self) -> float:
        if self.clips is None:
            return 0.0
        return 0.25 if self.clip_share is None else self.clip_share


class TokenizerBatchConfig(Config):
    size: PositiveInt = fixed(REQUIRED, "photos and clips an optimizer step, over all ranks")
    pixels: PositiveInt = free(
        1 << 22, "of samples of one shape that a rank computes at once, frames counted"
    )


class CodebookConfig(Config):
    """How codes are placed, kept in use and counted."""

    plain_steps: NonNegativeInt = fixed(
        REQUIRED, "steps without codes, before k-means places them; 0: codes as they are"
    )
    kmeans: bool = fixed(True, "place the codes by k-means when they begin")
    kmeans_rounds: PositiveInt = fixed(10, "of k-means")
    window: PositiveInt = fixed(8, "recent latents to keep, for each code")
    restart_after: NonNegativeInt = semantic(
        16, "latents seen, for each code, before the unused ones move onto some; 0: never"
    )
    restart_until: float = semantic(0.8, "share of run.steps after which none restarts", ge=0, le=1)
    margin: float = fixed(
        2.0,
        "new codes stay so many times as far from the images' latents as these lie from their "
        "codes: pictures that no step saw lie further from theirs",
        ge=1,
    )
    count_steps: PositiveInt = fixed(
        100, "steps over which usage and perplexity are counted", multiple_of=10
    )


class MuonConfig(Config):
    """Muon moves the weights of 2D convolutions by their momentum made orthogonal."""

    lr: PositiveFloat | None = semantic(
        None, "their highest learning rate, on the same schedule; optimizer.lr without it"
    )
    momentum: float = semantic(0.95, "of the gradients", ge=0, lt=1)


class TokenizerOptimizerConfig(Config):
    """Adam, and the schedule of its learning rate; the discriminators' follows the same shape."""

    lr: PositiveFloat = semantic(REQUIRED, "highest learning rate")
    schedule: AnySchedule = semantic(
        {"kind": "cosine"}, "of the learning rate: its kind, and the keys of that kind"
    )
    beta1: NonNegativeFloat = semantic(0.5, "of Adam", lt=1)
    beta2: NonNegativeFloat = semantic(0.9, "of Adam", lt=1)
    epsilon: PositiveFloat = semantic(1e-8, "of Adam")
    clip: NonNegativeFloat = semantic(1.0, "largest gradient norm; 0 never clips")
    muon: MuonConfig | None = fixed(None, "for the weights of 2D convolutions; null: Adam for all")


class EmaConfig(Config):
    """A running mean of the weights, which is what is saved and evaluated."""

    decay: float = semantic(0.9999, "share of the mean that a step keeps", gt=0, lt=1)


class TokenizerValidationConfig(EvaluationConfig):
    """Reconstruction of files that no step learns from."""

    images: Path = free(REQUIRED, "folder of photos, held out")
    clips: Path | None = free(None, "folder of clips, held out")
    area: PositiveInt = free(65_536, "pixels of a photo or frame", ge=64)
    shown: NonNegativeInt = free(4, "files whose reconstruction is drawn into samples/")


class TokenizerRecipe(Config):
    """A training of the tokenizer."""

    READER: ClassVar[str] = "emu3 tokenizer train"
    RENAMED: ClassVar[dict[str, str]] = {
        "start_from": "run.init_from",
        "steps": "run.steps",
        "batch_size": "batch.size",
        "lr": "optimizer.lr",
        "lr_warmup_steps": "optimizer.schedule.warmup_steps",
        "betas": "optimizer.beta1",
        "clip_grad_norm": "optimizer.clip",
        "plain_steps": "codebook.plain_steps",
        "revive_every": "codebook.restart_after",
        "log_every": "run.log_every",
        "workers": "data.workers",
        "seed": "run.seed",
    }

    run: TokenizerRunConfig = free(REQUIRED, TokenizerRunConfig.__doc__ or "")
    network: TokenizerNetwork = fixed(
        TokenizerNetwork.model_validate({}), TokenizerNetwork.__doc__ or ""
    )
    trained: Literal["all", "decoder", "new_codes"] = fixed(
        "all",
        "decoder: encoder and codes stay, so that shards stay valid; new_codes: the decoder, and "
        "codes beyond those of run.init_from, placed for clips",
    )
    data: TokenizerData = semantic(REQUIRED, TokenizerData.__doc__ or "")
    batch: TokenizerBatchConfig = semantic(REQUIRED, "samples a step")
    loss: LossConfig = semantic(LossConfig(), LossConfig.__doc__ or "")
    adversarial: AdversarialConfig | None = fixed(None, AdversarialConfig.__doc__ or "")
    codebook: CodebookConfig = semantic(REQUIRED, CodebookConfig.__doc__ or "")
    batch_norm_steps: NonNegativeInt = semantic(
        REQUIRED, "steps that move BatchNorm's statistics; after them they stay"
    )
    optimizer: TokenizerOptimizerConfig = semantic(REQUIRED, TokenizerOptimizerConfig.__doc__ or "")
    ema: EmaConfig | None = fixed(None, EmaConfig.__doc__ or "")
    precision: Literal["fp32", "bf16"] = fixed(
        "fp32", "of convolutions; weights, latents, search and losses are fp32"
    )
    recompute: bool = free(False, "activations computed again in the backward pass, by block")
    guard: GuardConfig = free(GuardConfig(), GuardConfig.__doc__ or "")
    validation: TokenizerValidationConfig | None = free(
        None, TokenizerValidationConfig.__doc__ or ""
    )

    @property
    def terms(self) -> list[str]:
        """Names of the loss terms, for whoever asks what a run minimises."""
        perceptual = self.loss.perceptual.kind
        found = [*self.loss.weights, *([perceptual] if perceptual != "none" else [])]
        found += ["entropy"] if self.loss.entropy else []
        return found + (["adversarial"] if self.adversarial else [])

    @validator(mode="after")
    def _schedule_fits(self) -> "TokenizerRecipe":
        self.optimizer.schedule.check(self.optimizer.lr, self.run.steps)
        return self

    @validator(mode="after")
    def _samples_are_large_enough(self) -> "TokenizerRecipe":
        side, name = self.data.shortest_side
        self.loss.perceptual.require_sides(side, name)
        if self.adversarial:
            self.adversarial.require_sides(side, name)
            self.adversarial.require_steps(self.run.steps)
        return self

    @validator(mode="after")
    def _has_what_it_starts_from(self) -> "TokenizerRecipe":
        if self.trained != "all" and self.run.init_from is None:
            raise ValueError(
                f"trained={self.trained} needs run.init_from, the tokenizer whose codes stay"
            )
        if self.trained == "new_codes" and not self.data.share_of_clips:
            raise ValueError(
                "trained=new_codes needs data.clips and data.clip_share above 0: new codes are "
                "placed for clips"
            )
        if self.trained == "new_codes" and not self.codebook.plain_steps:
            raise ValueError(
                "trained=new_codes needs codebook.plain_steps above 0: in these steps the latents "
                "are gathered that new codes are placed by"
            )
        return self
