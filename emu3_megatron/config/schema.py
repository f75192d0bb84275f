"""The recipe: everything that makes one stage of training different from another."""

from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from pydantic import model_validator as validator

from emu3_megatron.config.base import Config
from emu3_megatron.config.presets import PRESETS
from emu3_megatron.vocabulary import ByteEncoding, QwenEncoding, Vocabulary


class ModelConfig(Config):
    """The decoder. `preset` fills every size that is not given."""

    preset: str | None = None
    layers: PositiveInt
    hidden: PositiveInt
    heads: PositiveInt
    kv_heads: PositiveInt
    ffn: PositiveInt
    text: Literal["qwen", "bytes"]
    codes: PositiveInt
    ranks_file: Path | None = Field(None, description="emu3.tiktoken; dashscope's copy without it")
    dropout: float = Field(0.1, ge=0, lt=1, description="embedding, attention, both residuals")
    rope_base: PositiveFloat = 1_000_000
    norm_epsilon: PositiveFloat = 1e-5
    init_std: PositiveFloat = 0.02

    @validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("preset") is None:
            return values
        if values["preset"] not in PRESETS:
            raise ValueError(f"no such preset; choose one of {', '.join(PRESETS)}")
        return {**PRESETS[values["preset"]], **values}

    @validator(mode="after")
    def _heads_divide(self) -> "ModelConfig":
        if self.hidden % self.heads or self.heads % self.kv_heads:
            raise ValueError(
                f"heads ({self.heads}) must divide hidden ({self.hidden}) and be a multiple of "
                f"kv_heads ({self.kv_heads})"
            )
        return self

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    def vocabulary(self) -> Vocabulary:
        encoding = QwenEncoding(self.ranks_file) if self.text == "qwen" else ByteEncoding()
        return Vocabulary(encoding, self.codes)


class SourceConfig(Config):
    """One set of packs in the mixture."""

    pack: Path
    weight: PositiveFloat = 1.0


class DataConfig(Config):
    context: PositiveInt = Field(description="tokens a sequence")
    sources: list[SourceConfig] = Field(min_length=1)
    reset_at_documents: bool = Field(True, description="attention and positions begin anew")
    workers: NonNegativeInt = 2


class ValidationConfig(Config):
    """Held-out loss while training: the same documents every time."""

    every: PositiveInt = Field(description="steps between evaluations; the last step has one too")
    batches: PositiveInt = Field(description="batches of batch.size sequences an evaluation")
    sources: list[SourceConfig] = Field(min_length=1)


class WeightsConfig(Config):
    """Weight of a label's loss by its class; the loss is the weighted mean."""

    text: NonNegativeFloat = 1.0
    structure: NonNegativeFloat = 1.0
    code: NonNegativeFloat = 0.5

    @property
    def table(self) -> tuple[float, float, float]:
        """By token class: TEXT, STRUCTURE, CODE."""
        return (self.text, self.structure, self.code)


class BatchConfig(Config):
    size: PositiveInt = Field(description="sequences an optimizer step, over all ranks")
    micro_size: PositiveInt = Field(1, description="sequences a rank computes at once")


class ParallelConfig(Config):
    """Data parallelism takes the ranks that tensor x context leave over."""

    tensor: PositiveInt = 1
    context: PositiveInt = 1
    sequence: bool = Field(False, description="sequence parallel norms and dropout; needs tensor>1")
    distributed_optimizer: bool = False
    attention: Literal["auto", "transformer_engine"] = Field(
        "auto", description="transformer_engine: its context parallel attention, a row a document"
    )


class OptimizerConfig(Config):
    """AdamW under a cosine with a linear warm-up."""

    lr: PositiveFloat
    min_lr: NonNegativeFloat = 0.0
    warmup_steps: NonNegativeInt = 0
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.95, ge=0, lt=1)
    epsilon: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.1
    clip: NonNegativeFloat = Field(1.0, description="largest gradient norm; 0 never clips")


class PromptConfig(Config):
    caption: str
    height: PositiveInt = Field(description="rows of the grid of codes")
    width: PositiveInt


class SampleConfig(Config):
    """Images drawn from fixed captions while training."""

    every: PositiveInt
    tokenizer: Path
    prompts: list[PromptConfig] = Field(min_length=1)
    guidance: NonNegativeFloat = 3.0
    top_k: PositiveInt | None = 2048


class RunConfig(Config):
    dir: Path
    steps: PositiveInt
    init_from: Path | None = Field(None, description="checkpoint whose weights to start from")
    seed: int = 0
    log_every: PositiveInt = 10
    save_every: PositiveInt = 1000
    keep: PositiveInt = Field(3, description="newest checkpoints to keep")
    save_in_background: bool = Field(True, description="training goes on while files are written")
    resume: Literal["strict", "auto"] = Field(
        "strict", description="auto passes over damaged checkpoints to the newest sound one"
    )
    hang_seconds: PositiveFloat = Field(900.0, description="without progress, before the run ends")
    stop_after: PositiveInt | None = Field(
        None, description="leave after this step; schedule as if going on"
    )
    wandb: str | None = Field(None, description="project; honours WANDB_MODE=offline")
    tensorboard: bool = False


class GuardConfig(Config):
    """What happens to steps that must not move the weights. Those not finite are always skipped."""

    spikes: Literal["ignore", "skip", "rollback"] = Field(
        "ignore", description="rollback: weights of the last checkpoint, data goes on behind it"
    )
    threshold: PositiveFloat = Field(6.0, description="robust z-score of loss or gradient norm")
    window: PositiveInt = Field(128, description="steps that the score is taken over")
    patience: PositiveInt = Field(5, description="bad steps in a row that end the run")
    replicas_every: PositiveInt = Field(100, description="steps between comparisons of copies")


class DecoderRecipe(Config):
    """What of a recipe opens a checkpoint's decoder; an imported checkpoint has no more."""

    model_config = ConfigDict(extra="ignore")

    model: ModelConfig
    precision: Literal["fp32", "bf16"]
    sample: SampleConfig | None = None


class Recipe(Config):
    """One stage of training."""

    run: RunConfig
    model: ModelConfig
    data: DataConfig
    batch: BatchConfig
    optimizer: OptimizerConfig
    weights: WeightsConfig = WeightsConfig()
    parallel: ParallelConfig = ParallelConfig()
    precision: Literal["fp32", "bf16"] = "bf16"
    guard: GuardConfig = GuardConfig()
    recompute: Literal["none", "selective", "full"] = "none"
    z_loss: NonNegativeFloat = Field(0.0, description="weight of mean squared log-partition")
    loss_backend: Literal["auto", "reference", "triton", "cuda", "unfused"] = Field(
        "auto", description="of head and loss; unfused keeps all logits, to check the others"
    )
    sample: SampleConfig | None = None
    validation: ValidationConfig | None = None

    @validator(mode="after")
    def _validation_is_held_out(self) -> "Recipe":
        trained = {source.pack.resolve() for source in self.data.sources}
        for source in self.validation.sources if self.validation else ():
            if source.pack.resolve() in trained:
                raise ValueError(
                    f"validation.sources: {source.pack} is among data.sources; hold other packs out"
                )
        return self

    @validator(mode="after")
    def _schedule_fits(self) -> "Recipe":
        if self.optimizer.min_lr > self.optimizer.lr:
            raise ValueError(
                f"optimizer.min_lr={self.optimizer.min_lr} is above "
                f"optimizer.lr={self.optimizer.lr}; lower it"
            )
        if self.optimizer.warmup_steps > self.run.steps:
            raise ValueError(
                f"optimizer.warmup_steps={self.optimizer.warmup_steps} is more than "
                f"run.steps={self.run.steps}; lower it"
            )
        return self

    @validator(mode="after")
    def _transformer_engine_fits(self) -> "Recipe":
        if self.parallel.attention == "auto":
            return self
        name, or_auto = "parallel.attention=transformer_engine", "or parallel.attention=auto"
        if self.data.reset_at_documents:
            raise ValueError(
                f"{name} would pad every document to 2 x parallel.context tokens, which packs do "
                f"not have; set data.reset_at_documents=false, {or_auto}"
            )
        if self.sample:
            raise ValueError(
                f"{name} has no cache to draw samples with; leave sample out, {or_auto}"
            )
        if self.data.context % (2 * self.parallel.context):
            raise ValueError(
                f"{name} needs a data.context that is a multiple of 2 x parallel.context="
                f"{2 * self.parallel.context}, not {self.data.context}; change it, {or_auto}"
            )
        return self

    @validator(mode="after")
    def _layout_fits(self) -> "Recipe":
        tensor, context = self.parallel.tensor, self.parallel.context
        for name in ("heads", "kv_heads", "ffn"):
            if getattr(self.model, name) % tensor:
                raise ValueError(
                    f"parallel.tensor={tensor} does not divide model.{name}="
                    f"{getattr(self.model, name)}; choose a divisor"
                )
        if self.parallel.sequence and tensor == 1:
            raise ValueError("parallel.sequence=true needs parallel.tensor of 2 or more")
        if self.sample and context > 1:
            raise ValueError("sample: images are drawn with parallel.context=1; leave sample out")
        # Context parallel ranks hold equal shares, and sequence parallel ranks cut those.
        pieces = context * (tensor if self.parallel.sequence else 1)
        if self.data.context % pieces:
            raise ValueError(f"data.context={self.data.context} must be a multiple of {pieces}")
        if self.batch.size % self.batch.micro_size:
            raise ValueError(
                f"batch.size={self.batch.size} must be a multiple of "
                f"batch.micro_size={self.batch.micro_size}"
            )
        return self
