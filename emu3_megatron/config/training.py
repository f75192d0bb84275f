"""Schema of training recipes: everything that distinguishes one stage of training from another.

Each field says once whether it may change when a run resumes: `free`, `semantic` or `fixed`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    ConfigDict,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    SerializeAsAny,
)
from pydantic import model_validator as validator

from emu3_megatron.config.base import (
    REQUIRED,
    Component,
    Config,
    chosen_by_kind,
    fixed,
    free,
    semantic,
)
from emu3_megatron.config.data import AnyData, MixtureConfig, ValidationConfig
from emu3_megatron.config.engines import AnyEngine, DeepSpeedConfig
from emu3_megatron.config.model import ModelConfig
from emu3_megatron.config.objectives import AnyObjective, unfit
from emu3_megatron.config.runs import GuardConfig, RunConfig
from emu3_megatron.config.schedule import AnySchedule
from emu3_megatron.errors import InputError

# "selective" is all that costs little to compute again: norms and activation.
Recompute = Literal["none", "selective", "full"] | list[Literal["norms", "activation", "attention"]]


def recomputed_parts(recompute: Recompute) -> frozenset[str]:
    """The parts of a layer that are computed again; none where it is whole layers."""
    if isinstance(recompute, str):
        return frozenset(("norms", "activation") if recompute == "selective" else ())
    return frozenset(recompute)


AnyHook = Annotated[SerializeAsAny[Component], chosen_by_kind({})]


class RampConfig(Config):
    """Smaller batches at the start of a run."""

    start: PositiveInt = fixed(REQUIRED, "sequences of the first step")
    increment: PositiveInt = fixed(REQUIRED, "sequences by which a step grows, until batch.size")
    sequences: PositiveInt = fixed(REQUIRED, "that the ramp takes in all")


class BatchConfig(Config):
    size: PositiveInt = fixed(REQUIRED, "sequences an optimizer step, over all ranks")
    micro_size: PositiveInt = free(1, "sequences a rank computes at once")
    ramp: RampConfig | None = fixed(None, RampConfig.__doc__ or "")

    @validator(mode="after")
    def _ramp_ends_at_the_size(self) -> "BatchConfig":
        ramp = self.ramp
        if ramp and (ramp.start >= self.size or (self.size - ramp.start) % ramp.increment):
            raise ValueError(
                f"ramp: from start={ramp.start} steps of increment={ramp.increment} do not lead to "
                f"batch.size={self.size}; choose a smaller start, and an increment that divides "
                "what is between"
            )
        return self

    def sizes(self) -> dict[str, int]:
        """By key, what all sizes of steps are sums of."""
        ramp = self.ramp
        of_ramp = {"ramp.start": ramp.start, "ramp.increment": ramp.increment} if ramp else {}
        return {f"batch.{name}": size for name, size in {"size": self.size, **of_ramp}.items()}

    def check(self, data_size: int) -> None:
        """Raise InputError unless the sequences of every step divide over data parallel ranks."""
        step = self.micro_size * data_size
        for name, size in self.sizes().items():
            if size % step:
                raise InputError(
                    f"{name}={size} must be a multiple of batch.micro_size x data "
                    f"parallel ranks = {self.micro_size} x {data_size} = {step}"
                )


class ParallelConfig(Config):
    """Data parallelism takes the ranks that tensor x context leave over."""

    tensor: PositiveInt = free(1, "ranks that share each layer")
    context: PositiveInt = free(1, "ranks that share each sequence")
    sequence: bool = free(False, "sequence parallel norms and dropout; needs tensor>1")
    distributed_optimizer: bool = free(False, "optimizer states divided over data x context ranks")
    overlap_grad_reduce: bool = free(
        False, "gradients are summed over ranks while the backward pass goes on"
    )
    overlap_param_gather: bool = free(
        False,
        "weights that the optimizer moved are gathered while the forward pass goes on; needs "
        "distributed_optimizer and overlap_grad_reduce",
    )
    overlap_tensor: bool = free(
        False,
        "TransformerEngine exchanges parts of a product while it computes others; needs sequence "
        "and backend.layers=transformer_engine",
    )


class BackendConfig(Config):
    """Who computes what. A choice of hardware: every backend gives the same numbers to rounding."""

    layers: Literal["native", "transformer_engine"] = free(
        "native",
        "layers around attention: ours on Megatron-core's products, or TransformerEngine's",
    )
    attention: Literal["auto", "cudnn", "flash", "flash3", "flash4", "transformer_engine"] = free(
        "auto",
        "cudnn and flash: on GPUs, without dropout; transformer_engine: its context parallel "
        "attention, a row a document",
    )
    fp8: Literal["none", "tensorwise", "delayed", "blockwise", "mxfp8"] = free(
        "none", "TransformerEngine's recipe of products in 8 bits; needs layers: transformer_engine"
    )
    loss: Literal["auto", "reference", "triton", "cuda", "unfused"] = free(
        "auto", "head and loss; unfused keeps all logits, to check the others"
    )


class MultiplierConfig(Config):
    """Parameters that learn faster or more slowly than the others."""

    parameters: str = semantic(REQUIRED, "pattern of their names, such as embedding.*")
    lr: PositiveFloat = semantic(REQUIRED, "factor on the learning rate")


class AverageConfig(Config):
    """An exponential moving average of the weights, kept beside them."""

    decay: PositiveFloat = semantic(0.999, "what stays of the average in a step", lt=1)


class OptimizerConfig(Config):
    """AdamW, and the schedule of its learning rate."""

    lr: PositiveFloat = semantic(REQUIRED, "highest learning rate")
    schedule: AnySchedule = semantic(
        {"kind": "cosine"}, "of the learning rate: its kind, and the keys of that kind"
    )
    beta1: NonNegativeFloat = semantic(0.9, "of Adam", lt=1)
    beta2: NonNegativeFloat = semantic(0.95, "of Adam", lt=1)
    epsilon: PositiveFloat = semantic(1e-8, "of Adam")
    weight_decay: NonNegativeFloat = semantic(0.1, "of matrices; norms have none")
    clip: NonNegativeFloat = semantic(1.0, "largest gradient norm; 0 never clips")
    freeze: list[str] = semantic(
        [], "parameters that stay as they are: patterns of names, such as block.layers.[0-3].*"
    )
    multipliers: list[MultiplierConfig] = semantic([], MultiplierConfig.__doc__ or "")
    average: AverageConfig | None = semantic(None, AverageConfig.__doc__ or "")


class PromptConfig(Config):
    caption: str = free(REQUIRED, "what to draw")
    height: PositiveInt = free(REQUIRED, "rows of the grid of codes")
    width: PositiveInt = free(REQUIRED, "columns of the grid of codes")


class SampleConfig(Config):
    """Images drawn from fixed captions while training."""

    every: PositiveInt = free(REQUIRED, "steps between drawings; the last step has one too")
    tokenizer: Path = free(REQUIRED, "folder of the vision tokenizer")
    prompts: list[PromptConfig] = free(REQUIRED, "what to draw", min_length=1)
    guidance: NonNegativeFloat | None = free(
        None, "scale of guidance; without it 3 where data.null_prompt is above 0, else none"
    )
    top_k: PositiveInt | None = free(2048, "likeliest tokens to draw among")


class DecoderRunConfig(RunConfig):
    """Where a run lives, how long it is, what it starts from and leaves."""

    init_from: Path | None = free(
        None,
        "checkpoint whose weights a new run starts from; the engine deepspeed takes a folder of "
        "Hugging Face too",
    )
    export: Path | None = free(
        None,
        "folder that transformers loads, to be written after the last step; with adapters "
        "merged, and beside them in adapter/",
    )


class DecoderRecipe(Config):
    """What of a recipe opens a checkpoint's decoder; an imported checkpoint has no more."""

    model_config = ConfigDict(extra="ignore")

    model: ModelConfig
    precision: Literal["fp32", "bf16"]
    sample: SampleConfig | None = None

    @classmethod
    def of(cls, path: Path, about: Mapping[str, Any]) -> "DecoderRecipe":
        """That of a checkpoint, from its manifest. Raises InputError when it holds no decoder."""
        require_decoder(path, about)
        return cls.model_validate(about["recipe"])


def require_decoder(path: Path, about: Mapping[str, Any]) -> None:
    """Raise InputError unless a checkpoint, by its manifest, is a decoder's."""
    if "model" not in about["recipe"]:
        raise InputError(
            f"{path}: a checkpoint of the vision tokenizer's training; name one of a decoder"
        )


class Recipe(Config):
    """One stage of training."""

    READER: ClassVar[str] = "emu3 train"

    RENAMED: ClassVar[dict[str, str]] = {
        "weights": "objective.weights",
        "z_loss": "objective.z_loss",
        "loss_backend": "backend.loss",
        "parallel.attention": "backend.attention",
        "optimizer.min_lr": "optimizer.schedule.min_lr",
        "optimizer.warmup_steps": "optimizer.schedule.warmup_steps",
        "optimizer.decay_steps": "optimizer.schedule.steps",
    }

    run: DecoderRunConfig = free(REQUIRED, DecoderRunConfig.__doc__ or "")
    model: ModelConfig = semantic(REQUIRED, ModelConfig.__doc__ or "")
    data: AnyData = semantic(REQUIRED, "what is read")
    batch: BatchConfig = semantic(REQUIRED, "sequences a step")
    objective: AnyObjective = semantic({"kind": "next_token"}, "what is minimised")
    # Its optimizer's states are its own: another kind could not load them.
    engine: AnyEngine = fixed({"kind": "megatron"}, "who computes gradients and moves weights")
    optimizer: OptimizerConfig = semantic(REQUIRED, OptimizerConfig.__doc__ or "")
    parallel: ParallelConfig = free(ParallelConfig(), ParallelConfig.__doc__ or "")
    backend: BackendConfig = free(BackendConfig(), BackendConfig.__doc__ or "")
    precision: Literal["fp32", "bf16"] = semantic("bf16", "of weights and activations")
    recompute: Recompute = free(
        "none",
        "what the backward pass computes again: selective is [norms, activation]; "
        "attention only where a list has it; full is whole layers",
    )
    guard: GuardConfig = free(GuardConfig(), GuardConfig.__doc__ or "")
    validation: ValidationConfig | None = free(None, ValidationConfig.__doc__ or "")
    sample: SampleConfig | None = free(None, SampleConfig.__doc__ or "")
    hooks: list[AnyHook] = free([], "further hooks, each with its kind")

    @property
    def context(self) -> int:
        """Tokens a sequence."""
        return self.data.context

    @validator(mode="after")
    def _validation_is_held_out(self) -> "Recipe":
        paths = lambda sources: [s.pack for s in sources if hasattr(s, "pack")]
        trained = {path.resolve() for path in paths(getattr(self.data, "sources", []))}
        for path in paths(self.validation.sources if self.validation else []):
            if path.resolve() in trained:
                raise ValueError(
                    f"validation.sources: {path} is among data.sources; hold other packs out"
                )
        return self

    @validator(mode="after")
    def _schedule_fits(self) -> "Recipe":
        self.optimizer.schedule.check(self.optimizer.lr, self.run.steps)
        return self

    @validator(mode="after")
    def _objective_fits(self) -> "Recipe":
        for line in unfit(self.objective, self.model, self.data, self.run.init_from):
            raise ValueError(line)
        return self

    @validator(mode="after")
    def _recompute_fits(self) -> "Recipe":
        if recomputed_parts(self.recompute) and self.backend.layers == "transformer_engine":
            raise ValueError(
                f"recompute={_as_yaml(self.recompute)}: TransformerEngine's layers are computed "
                "again as a whole, or not at all; set recompute=full or none, or "
                "backend.layers=native"
            )
        return self

    @validator(mode="after")
    def _attention_fits(self) -> "Recipe":
        name = self.backend.attention
        if name not in ("auto", "transformer_engine") and self.model.dropout:
            raise ValueError(
                f"backend.attention={name}: it cannot drop by global positions; set "
                "model.dropout=0, or backend.attention=auto"
            )
        return self

    @validator(mode="after")
    def _transformer_engine_fits(self) -> "Recipe":
        if self.backend.attention != "transformer_engine":
            return self
        name, or_auto = "backend.attention=transformer_engine", "or backend.attention=auto"
        if not isinstance(self.data, MixtureConfig) or self.data.reset_at_documents:
            raise ValueError(
                f"{name} would pad every document to 2 x parallel.context tokens, which packs do "
                f"not have; set data.reset_at_documents=false, {or_auto}"
            )
        if self.sample:
            raise ValueError(
                f"{name} has no cache to draw samples with; leave sample out, {or_auto}"
            )
        if self.context % (2 * self.parallel.context):
            raise ValueError(
                f"{name} needs a data.context that is a multiple of 2 x parallel.context="
                f"{2 * self.parallel.context}, not {self.context}; change it, {or_auto}"
            )
        return self

    @validator(mode="after")
    def _deepspeed_fits(self) -> "Recipe":
        if not isinstance(self.engine, DeepSpeedConfig):
            return self
        parallel, backend = self.parallel, self.backend
        for name, given, wanted in (
            ("parallel.tensor", parallel.tensor, 1),
            ("parallel.context", parallel.context, 1),
            ("parallel.sequence", parallel.sequence, False),
            ("parallel.distributed_optimizer", parallel.distributed_optimizer, False),
            ("parallel.overlap_grad_reduce", parallel.overlap_grad_reduce, False),
            ("backend.layers", backend.layers, "native"),
            ("backend.attention", backend.attention, "auto"),
            ("optimizer.freeze", self.optimizer.freeze, []),
            ("optimizer.multipliers", self.optimizer.multipliers, []),
            ("optimizer.average", self.optimizer.average, None),
        ):
            if given != wanted:
                raise ValueError(
                    f"{name}={_as_yaml(given)}: the engine deepspeed has data parallel ranks of "
                    f"transformers' layers alone, all trained alike; set it to {_as_yaml(wanted)}, "
                    "or engine.kind to megatron"
                )
        if self.sample:
            raise ValueError(
                "sample: the engine deepspeed draws no images; leave it out, and draw from the "
                "checkpoints with emu3 generate image"
            )
        if recomputed_parts(self.recompute):
            raise ValueError(
                f"recompute={_as_yaml(self.recompute)}: the engine deepspeed computes whole "
                "layers again, or none; set recompute=full"
            )
        if self.engine.stage == 0 and self.precision == "bf16":
            raise ValueError(
                "engine.stage=0 keeps no fp32 weights for the optimizer; set engine.stage=1, "
                "or precision=fp32"
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
        self._overlap_fits()
        if self.parallel.sequence and tensor == 1:
            raise ValueError("parallel.sequence=true needs parallel.tensor of 2 or more")
        if self.sample and context > 1:
            raise ValueError("sample: images are drawn with parallel.context=1; leave sample out")
        # Context parallel ranks hold equal shares, and sequence parallel ranks cut those.
        pieces = context * (tensor if self.parallel.sequence else 1)
        if self.context % pieces:
            raise ValueError(f"data.context={self.context} must be a multiple of {pieces}")
        if self.batch.ramp and not isinstance(self.data, MixtureConfig):
            raise ValueError("batch.ramp: data of kind mixture alone has it; leave it out")
        for name, size in self.batch.sizes().items():
            if size % self.batch.micro_size:
                raise ValueError(
                    f"{name}={size} must be a multiple of batch.micro_size={self.batch.micro_size}"
                )
        return self

    def _overlap_fits(self) -> None:
        parallel = self.parallel
        if parallel.overlap_param_gather and not (
            parallel.distributed_optimizer and parallel.overlap_grad_reduce
        ):
            raise ValueError(
                "parallel.overlap_param_gather=true needs parallel.distributed_optimizer=true and "
                "parallel.overlap_grad_reduce=true"
            )
        te = self.backend.layers == "transformer_engine"
        if parallel.overlap_tensor and not (parallel.sequence and te):
            raise ValueError(
                "parallel.overlap_tensor=true needs parallel.sequence=true and "
                "backend.layers=transformer_engine"
            )
        if self.backend.fp8 != "none" and not te:
            raise ValueError(
                f"backend.fp8={self.backend.fp8} needs backend.layers=transformer_engine; set "
                "that, or backend.fp8=none"
            )


def _as_yaml(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(value)}]"
    return str(value).lower() if isinstance(value, bool) else str(value)
