"""Takes one optimizer step of the vision tokenizer and of its discriminators.

The trainer owns the collectives of a step: one fp64 sum of losses, counts and statistics, one sum
of the gradients, and the judge's vote. Everything else follows from the seed, the step and the
samples, so that ranks, groups and worker processes change nothing.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from emu3_megatron.checkpoints.state import Saved, State
from emu3_megatron.config.tokenizer_losses import AdversarialConfig
from emu3_megatron.config.tokenizer_training import TokenizerOptimizerConfig, TokenizerRecipe
from emu3_megatron.errors import InputError
from emu3_megatron.runs.interfaces import Judge, StepResult, Verdict
from emu3_megatron.runs.metrics.log import Work
from emu3_megatron.runs.schedule import build_schedule
from emu3_megatron.tokenizer_training.adversarial.rules import (
    adaptive_weight,
    discriminators_train,
    generator_weight,
)
from emu3_megatron.tokenizer_training.batch_norm import BatchNormStatistics
from emu3_megatron.tokenizer_training.codebook import KEPT_A_SAMPLE, KINDS, CodebookKeeper, Seen
from emu3_megatron.tokenizer_training.ema import Ema
from emu3_megatron.tokenizer_training.forward import Losses, Networks, Phase, psnr_db
from emu3_megatron.tokenizer_training.gradients import clip, norm_of, sum_over_ranks
from emu3_megatron.tokenizer_training.groups import Group, groups_of
from emu3_megatron.tokenizer_training.optimizers import (
    Adam,
    AdamWithMuon,
    Optimizer,
    grads_of,
    is_matrix,
    zero_grads,
)
from emu3_megatron.tokenizer_training.samples import Sample
from emu3_megatron.tokenizer_training.statistics import StepSums, Sums
from emu3_megatron.vision.tokenizer import VisionTokenizer

BOOK = "quantize.embedding.weight"
_NORMS_KEPT = 0.9  # of the running gradient norms behind the adaptive weight


class TokenizerTrainer:
    """Trains the networks of a recipe: see `runs.interfaces.Trainer`.

    Args:
        old_codes: of the tokenizer that the run started from, where new ones join them.
        report: told of files that cannot be used: a step and, on this rank, why.
        files: how many there are; when twice as many samples in a row cannot be used, none can.
    """

    def __init__(
        self,
        recipe: TokenizerRecipe,
        networks: Networks,
        *,
        old_codes: int = 0,
        files: int,
        report: Callable[[int, list[str]], None],
    ):
        self.recipe, self.networks = recipe, networks
        self.old_codes, self.files, self.report = old_codes, files, report
        tokenizer = self.tokenizer = networks.tokenizer
        self.device = next(tokenizer.parameters()).device
        self.rate = build_schedule(recipe.optimizer.schedule, recipe.optimizer.lr)
        self.optimizers = dict(_optimizers(recipe.optimizer, recipe.adversarial, networks))
        self.keeper = CodebookKeeper(
            tokenizer.quantize, recipe.codebook, recipe.run.seed, recipe.data.share_of_clips
        )
        # Statistics of a frozen encoder stay too: its codes depend on them.
        trained = tokenizer if recipe.trained == "all" else tokenizer.decoder
        # Before the statistics, whose hooks are of the live network alone.
        self.ema = Ema(tokenizer, recipe.ema.decay) if recipe.ema else None
        self.batch_norm = BatchNormStatistics(trained)
        self.last_layer_norms = torch.zeros(2, dtype=torch.float64, device=self.device)
        self.without_samples = 0
        # After which step all codes were placed; None: not yet.
        self.placed: int | None = None if recipe.codebook.plain_steps else 0

    @property
    def evaluated(self) -> VisionTokenizer:
        """The weights that are saved and evaluated."""
        return self.ema.tokenizer if self.ema else self.tokenizer

    def with_codes(self) -> VisionTokenizer | None:
        """The weights that are saved and evaluated, once their codes are placed."""
        return self.evaluated if self.old_codes or self.placed is not None else None

    def used_codes(self, step: int) -> bool:
        """Whether, after a step, some step has trained the decoder on all codes, new ones too."""
        return self.placed is not None and self.placed < step

    def named_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """All that is trained, which every rank holds alike, codes and statistics among it."""
        yield from self.tokenizer.state_dict().items()
        for owner, module in self.networks.modules().items():
            yield from ((f"{owner}.{name}", t) for name, t in module.state_dict().items())
        if self.ema:
            yield from ((f"ema.{n}", t) for n, t in self.ema.tokenizer.state_dict().items())
        yield from ((f"codebook.{name}", t) for name, t in self.keeper.tensors().items())

    def step(self, number: int, batches: Sequence[Sample], judge: Judge) -> StepResult:
        """See `runs.interfaces.Trainer`; `batches` are this rank's samples of the step."""
        for optimizer in self.optimizers.values():
            zero_grads(optimizer)
        phase = self._phase(number)
        sums = self._compute(number, batches, phase)
        self._report(number, batches, sums)
        if not sums["samples"]:
            return StepResult({"samples": 0.0, "lr": self.rate(number)}, judge({}), Work())
        norms = self._sum_gradients(sums, phase)
        metrics = self._metrics(sums, phase, norms)
        verdict = judge(_judged(metrics, phase))
        if not verdict.trouble:
            self._update(number, sums, phase, norms)
        metrics["lr"] = self.rate(number)
        if phase.quantized:
            metrics |= self.keeper.usage()
        return StepResult(metrics, verdict, self._work(sums), self._details(verdict, batches))

    def _sum_gradients(self, sums: Sums, phase: Phase) -> dict[str, float]:
        """Finish the gradients of all that this step moves; their norms, by optimizer."""
        norms = {}
        for name, optimizer in self._moving(sums, phase).items():
            grads = grads_of(optimizer)
            sum_over_ranks(grads, sums["samples"])
            norms[name] = norm_of(grads)
        return norms

    def _phase(self, step: int) -> Phase:
        adversarial = self.recipe.adversarial
        trains = adversarial is not None and discriminators_train(adversarial, step)
        weight = generator_weight(adversarial, step) or None if adversarial else None
        if weight and adversarial and adversarial.adaptive:
            # Of norms up to the step before; the first step finds none, and only measures them.
            weight *= adaptive_weight(*self.last_layer_norms).item()
        moves = step <= self.recipe.batch_norm_steps
        return Phase(self.placed is not None or self.old_codes > 0, trains, weight, moves)

    def _moving(self, sums: Sums, phase: Phase) -> dict[str, Optimizer]:
        """The optimizers that this step moves: a discriminator of clips needs some."""
        seen = {"tokenizer": True, "frames": phase.discriminators_train}
        seen["clips"] = phase.discriminators_train and bool(sums["clips"] > 0)
        return {name: optimizer for name, optimizer in self.optimizers.items() if seen[name]}

    # What a step computes

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """Of all sums of a step."""
        scalars = ("samples", "clips", "unusable", "tokens", "psnr", "loss", "adversarial")
        terms = (*self.networks.terms, "discriminators")
        book = self.keeper.quantizer.embedding.weight
        last = self.tokenizer.decoder.conv_out.weight
        size = self.recipe.batch.size
        return {
            **dict.fromkeys((*scalars, *terms), ()),
            **({"probabilities": (len(book),)} if self.networks.entropy else {}),
            "batch_norm": self.batch_norm.shape,
            "uses": (len(KINDS), len(book)),
            "latents": (size, KEPT_A_SAMPLE, book.shape[1]),
            "kept": (size,),
            "of_clips": (size,),
            "logits": (3, 2),
            "last_layer": (2, *last.shape),
        }

    def _compute(self, step: int, samples: Sequence[Sample], phase: Phase) -> Sums:
        """Gradients of this rank's samples, and the sums over all ranks'."""
        sums = StepSums(self._shapes(), self.device)
        sums.add("unusable", torch.tensor(sum(sample.pixels is None for sample in samples)))
        if phase.moves_batch_norm:
            self.batch_norm.start()
        first = (step - 1) * self.recipe.batch.size
        for group in groups_of(samples, self.recipe.batch.pixels):
            group = group.to(self.device, self.tokenizer.quantize.embedding.weight.dtype)
            self._count(sums, group, self.networks.backward(group, phase), first)
        if phase.moves_batch_norm:
            sums.add("batch_norm", self.batch_norm.stop())
        return sums.reduced()

    def _count(self, sums: StepSums, group: Group, losses: Losses, first: int) -> None:
        result = losses.result
        for name, number in (
            ("samples", len(group.indices)),
            ("clips", len(group.indices) * group.is_clip),
            ("tokens", losses.codes.numel()),
        ):
            sums.add(name, torch.tensor(float(number)))
        values = {**losses.terms, "psnr": psnr_db(result), "loss": losses.total}
        if losses.discriminators is not None and losses.logits is not None:
            values["discriminators"] = losses.discriminators
            sums.add("logits", losses.logits)
        for name, value_b in values.items():
            sums.add(name, value_b.double().sum())
        if losses.probabilities is not None:
            sums.add("probabilities", losses.probabilities)
        if losses.last_layer:
            sums.add("last_layer", torch.stack(losses.last_layer))
        uses = losses.codes.flatten().bincount(minlength=sums.values["uses"].shape[1])
        sums.values["uses"][int(group.is_clip)] += uses
        for index, latents_cfhw in zip(group.indices, result.latents.detach(), strict=True):
            kept = self.keeper.choose(index, latents_cfhw.flatten(1).T)
            sums.values["latents"][index - first, : len(kept)] = kept.double()
            sums.values["kept"][index - first] = len(kept)
            sums.values["of_clips"][index - first] = group.is_clip

    def _report(self, step: int, samples: Sequence[Sample], sums: Sums) -> None:
        """Name the files that cannot be used; all ranks together, when there are some."""
        if sums["unusable"]:
            self.report(step, [sample.fault for sample in samples if sample.pixels is None])
        self.without_samples = 0 if sums["samples"] else self.without_samples + 1
        # So many samples in a row have all files among them, wherever in an epoch they begin.
        if self.without_samples * self.recipe.batch.size >= 2 * self.files:
            raise InputError(f"{self.recipe.data.images}: not one of its files could be used")

    def _metrics(self, sums: Sums, phase: Phase, norms: dict[str, float]) -> dict[str, float]:
        samples = sums["samples"].item()
        mean = lambda name: sums[name].item() / samples
        metrics = {"loss": mean("loss")}
        metrics |= {name: mean(name) for name in self.networks.terms}
        if phase.discriminators_train:
            metrics["discriminator_loss"] = mean("discriminators")
        if phase.adversarial is not None:
            metrics |= {"adversarial": mean("adversarial"), "adversarial_weight": phase.adversarial}
        # A decoder that sees the latents themselves says nothing of what the codes will give.
        metrics["psnr_db" if phase.quantized else "psnr_without_codes_db"] = mean("psnr")
        for name, norm in norms.items():
            metrics["grad_norm" if name == "tokenizer" else f"grad_norm_{name}"] = norm
        return metrics | {"samples": samples, "unusable_samples": sums["unusable"].item()}

    def _work(self, sums: Sums) -> Work:
        return Work(tokens=int(sums["tokens"]), samples=int(sums["samples"]))

    @staticmethod
    def _details(verdict: Verdict, samples: Sequence[Sample]) -> list[dict[str, object]]:
        return [{"samples": [sample.index for sample in samples]}] if verdict.trouble else []

    # What a step moves

    def _update(self, step: int, sums: Sums, phase: Phase, norms: dict[str, float]) -> None:
        share = self.rate(step) / self.recipe.optimizer.lr
        adversarial = self.recipe.adversarial
        for name, norm in norms.items():
            clip(grads_of(self.optimizers[name]), norm, self.recipe.optimizer.clip)
            highest = self.recipe.optimizer.lr
            if name != "tokenizer" and adversarial:
                highest = adversarial.lr
            self.optimizers[name].step(highest * share)
        if phase.moves_batch_norm:
            self.batch_norm.move(sums["batch_norm"])
        if self.ema:
            self.ema.update(self.tokenizer)
        if self.networks.lecam is not None and phase.discriminators_train:
            self.networks.lecam.update(sums["logits"])
        if self.networks.probabilities is not None and phase.quantized:
            self.networks.probabilities.update(sums["probabilities"], sums["samples"])
        if phase.adversarial is not None:
            norms_now = sums["last_layer"].flatten(1).norm(dim=1)
            kept = _NORMS_KEPT if self.last_layer_norms[1] > 0 else 0.0
            self.last_layer_norms.mul_(kept).add_((1 - kept) * norms_now)
        self._keep_codes(step, sums)

    def _keep_codes(self, step: int, sums: Sums) -> None:
        """Remember, place, restart: after the step, so that a checkpoint holds what came of it."""
        config, run = self.recipe.codebook, self.recipe.run
        seen = Seen(sums["latents"], sums["kept"], sums["of_clips"] > 0, sums["uses"])
        self.keeper.observe(step, seen)
        if self.placed is None:
            is_due = step >= min(config.plain_steps, run.steps)
            if is_due and (not self.old_codes or self.keeper.has_clips()):
                self._place(step)
        elif (
            self.keeper.is_restart_due()
            and step <= config.restart_until * run.steps
            and self.recipe.trained == "all"
        ):
            self._forget_past(self.keeper.restart(step))

    def _place(self, step: int) -> None:
        self.placed = step
        if self.old_codes:
            self._forget_past(self.keeper.place_new_codes(step, self.old_codes))
        elif self.recipe.codebook.kmeans:
            self._forget_past(self.keeper.place_codes(step))

    def _forget_past(self, codes: Tensor) -> None:
        """Codes that were set anew have neither moments nor a running mean."""
        codes = codes.to(self.device)
        if BOOK in self.optimizers["tokenizer"].parameters:
            self.optimizers["tokenizer"].forget_rows(BOOK, codes)
        if self.ema:
            self.ema.place_codes(self.tokenizer, codes)

    # Checkpoints

    def state_dict(self, saved: Saved | None = None) -> State:
        """Everything that the next step depends on."""
        state: State = {
            "tokenizer": dict(self.tokenizer.state_dict()),
            "moments": {name: optimizer.tensors() for name, optimizer in self.optimizers.items()},
            "codebook": self.keeper.tensors(),
            "last_layer_norms": self.last_layer_norms,
            "counters": {
                "steps": {name: optimizer.steps for name, optimizer in self.optimizers.items()},
                "ema_updates": self.ema.updates if self.ema else 0,
                "latents": [self.keeper.filled, self.keeper.place],
                "without_samples": self.without_samples,
                "placed": self.placed,
                "old_codes": self.old_codes,
                "perceptual": self._perceptual,
            },
        }
        if self.ema:
            state["ema"] = dict(self.ema.tokenizer.state_dict())
        for name, module in self.networks.modules().items():
            state[name] = dict(module.state_dict())
        return state

    @property
    def _perceptual(self) -> str:
        """The perceptual loss by its name and the hash of its weights."""
        return self.networks.perceptual.identity if self.networks.perceptual else "none"

    def load_state_dict(self, state: State) -> None:
        counters = state["counters"]
        if counters["perceptual"] != self._perceptual:
            raise InputError(
                f"loss.perceptual: the run was trained with {counters['perceptual']}, not "
                f"{self._perceptual}; give the files that it began with, or choose another run.dir"
            )
        self.tokenizer.load_state_dict(state["tokenizer"])
        for name, optimizer in self.optimizers.items():
            optimizer.load(state["moments"][name], counters["steps"][name])
        self.keeper.load(state["codebook"], *counters["latents"])
        self.last_layer_norms.copy_(state["last_layer_norms"])
        self.without_samples, self.placed = counters["without_samples"], counters["placed"]
        self.old_codes = counters["old_codes"]
        if self.ema:
            self.ema.tokenizer.load_state_dict(state["ema"])
            self.ema.updates = counters["ema_updates"]
        for name, module in self.networks.modules().items():
            module.load_state_dict(state[name])


def _judged(metrics: dict[str, float], phase: Phase) -> dict[str, float]:
    """Losses and norms to judge a step by.

    They jump where codes begin and where the discriminators are first felt. Under a name of their
    own they are compared with steps alike, so that this is no spike.
    """
    names = [name for name in metrics if "grad_norm" in name]
    names += [name for name in ("loss", "discriminator_loss") if name in metrics]
    suffix = "" if phase.quantized else " without codes"
    suffix += " with discriminators" if phase.adversarial else ""
    return {f"{name}{suffix}": metrics[name] for name in names}


def _optimizers(
    config: TokenizerOptimizerConfig, adversarial: AdversarialConfig | None, networks: Networks
) -> Iterator[tuple[str, Optimizer]]:
    """Of the tokenizer, and of each discriminator."""
    named = networks.tokenizer.named_parameters()
    parameters = {name: parameter for name, parameter in named if parameter.requires_grad}
    others = parameters
    if config.muon:
        others = {n: p for n, p in parameters.items() if not is_matrix(n, p)}
    adam = Adam(others, (config.beta1, config.beta2), config.epsilon)
    if config.muon:
        times = (config.muon.lr or config.lr) / config.lr
        yield "tokenizer", AdamWithMuon(parameters, adam, config.muon.momentum, times)
    else:
        yield "tokenizer", adam
    if networks.discriminators and adversarial:
        for name, network in networks.discriminators.named_children():
            yield name, Adam(dict(network.named_parameters()), adversarial.betas)
