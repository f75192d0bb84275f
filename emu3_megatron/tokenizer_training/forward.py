"""Computes the losses and gradients of a group of samples."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from emu3_megatron.config.tokenizer_losses import EntropyConfig
from emu3_megatron.tokenizer_training.adversarial.networks import Discriminators
from emu3_megatron.tokenizer_training.adversarial.terms import (
    LeCam,
    discriminator_term,
    generator_term,
    logit_sums,
)
from emu3_megatron.tokenizer_training.groups import Group
from emu3_megatron.tokenizer_training.losses.entropy import (
    MeanProbabilities,
    entropy_term,
    probability_sums,
)
from emu3_megatron.tokenizer_training.losses.perceptual import Perceptual, perceptual_b
from emu3_megatron.tokenizer_training.losses.terms import TERMS, Reconstruction, at_least_fp32
from emu3_megatron.vision.measures.similarity import EXACT_DB, psnr_b
from emu3_megatron.vision.tokenizer import VisionTokenizer

PIXEL_TERMS = ("l2", "l1")
LATENT_TERMS = ("codebook", "commitment")


@dataclass(frozen=True)
class Phase:
    """What a step does.

    Attributes:
        quantized: the decoder sees codes; otherwise the latents themselves.
        discriminators_train: and give their terms.
        adversarial: weight of what the tokenizer feels of them; at 0 it is computed, and measured,
            but not felt. None: not computed.
        moves_batch_norm: the statistics follow this step's samples.
    """

    quantized: bool
    discriminators_train: bool = False
    adversarial: float | None = None
    moves_batch_norm: bool = False


@dataclass
class Losses:
    """What a group gave; terms are a value a sample, [b], before their weights.

    Attributes:
        total: the tokenizer's weighted sum [b].
        discriminators: their own term [b].
        logits: what `LeCam.update` sums, [3, 2].
        last_layer: gradients of the decoder's last layer, by the terms of the pixels and by the
            adversarial one.
        probabilities: what `MeanProbabilities.update` sums, [k].
    """

    result: Reconstruction
    codes: Tensor
    total: Tensor
    terms: dict[str, Tensor] = field(default_factory=dict)
    discriminators: Tensor | None = None
    logits: Tensor | None = None
    last_layer: tuple[Tensor, Tensor] | None = None
    probabilities: Tensor | None = None

    def add(self, name: str, weight: float, value: Tensor) -> None:
        self.terms[name] = value.detach()
        self.total = self.total + weight * value.detach()


@dataclass(frozen=True)
class Networks:
    """What is trained, and what judges it.

    Attributes:
        weights: of the plain terms, by name.
        perceptual: compares frames [n, 3, h, w]; gives [n].
        entropy: of the codes' use, with the running mean of their probabilities.
    """

    tokenizer: VisionTokenizer
    weights: dict[str, float]
    perceptual: Perceptual | None = None
    perceptual_weight: float = 0.0
    entropy: EntropyConfig | None = None
    probabilities: MeanProbabilities | None = None
    discriminators: Discriminators | None = None
    lecam: LeCam | None = None
    lecam_weight: float = 0.0
    bf16: bool = False

    @property
    def terms(self) -> list[str]:
        """Names of all terms of the tokenizer besides the adversarial one."""
        perceptual = [self.perceptual.name] if self.perceptual else []
        return [*self.weights, *perceptual, *(["entropy"] if self.entropy else [])]

    def modules(self) -> dict[str, nn.Module]:
        """What a checkpoint must hold besides the tokenizer, by name."""
        found = {
            "discriminators": self.discriminators,
            "lecam": self.lecam,
            "probabilities": self.probabilities,
        }
        return {name: module for name, module in found.items() if module is not None}

    def backward(self, group: Group, phase: Phase) -> Losses:
        """Add a group's gradients to the parameters': sums over its samples, not means."""
        latents, codes, vectors, rebuilt = self._reconstruct(group.pixels, phase.quantized)
        # Losses of pixels end at a leaf: their own graphs are gone before the decoder's is used.
        leaf = at_least_fp32(rebuilt.detach()).requires_grad_()
        result = Reconstruction(group.pixels, leaf, latents, vectors)
        losses = Losses(result, codes, torch.zeros(len(leaf)).to(leaf))
        grad = self._pixel_grad(result, losses)
        if phase.discriminators_train:
            felt = self._judge(result, losses, phase.adversarial)
            if felt is not None:
                last = self.tokenizer.decoder.conv_out.weight
                losses.last_layer = _grad(rebuilt, last, grad), _grad(rebuilt, last, felt)
                grad = grad + (phase.adversarial or 0) * felt
        ends, grads = [rebuilt], [grad.to(rebuilt)]
        for weight, value in self._latent_terms(result, phase, losses):
            if value.requires_grad:
                ends.append(value)
                grads.append(torch.full_like(value, weight))
        torch.autograd.backward(ends, grads)
        return losses

    def _reconstruct(
        self, pixels: Tensor, quantized: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        tokenizer, is_image = self.tokenizer, pixels.ndim == 4
        with torch.autocast(pixels.device.type, torch.bfloat16, enabled=self.bf16):
            encode = tokenizer.image_latents if is_image else tokenizer.clip_latents
            latents = encode(pixels)
            codes = tokenizer.quantize.nearest(latents.detach())
            vectors = tokenizer.quantize.lookup(codes) if quantized else latents.detach()
            # straight through: the decoder sees the codes, its gradient reaches the encoder
            through = latents + (vectors - latents).detach()
            rebuilt = tokenizer.decode_vectors(through, frames=1 if is_image else None)
        return latents, codes, vectors, rebuilt[:, 0] if is_image else rebuilt

    def _pixel_grad(self, result: Reconstruction, losses: Losses) -> Tensor:
        """The gradient of the pixels by all terms that compare them."""
        total = torch.zeros_like(losses.total)
        for name in PIXEL_TERMS:
            if weight := self.weights.get(name):
                value = TERMS[name](result)
                losses.add(name, weight, value)
                total = total + weight * value
        if self.perceptual is not None:
            value = perceptual_b(self.perceptual, result.pixels, result.rebuilt)
            losses.add(self.perceptual.name, self.perceptual_weight, value)
            total = total + self.perceptual_weight * value
        (grad,) = torch.autograd.grad(total.sum(), result.rebuilt)
        return grad

    def _latent_terms(
        self, result: Reconstruction, phase: Phase, losses: Losses
    ) -> Iterator[tuple[float, Tensor]]:
        """Weight and value of each term of latents and codes."""
        for name in LATENT_TERMS:
            if weight := self.weights.get(name):
                value = TERMS[name](result)
                losses.add(name, weight, value)
                yield weight, value
        if self.entropy and self.probabilities is not None and phase.quantized:
            book, temperature = self.tokenizer.quantize.embedding.weight, self.entropy.temperature
            value = entropy_term(result.latents, book, self.probabilities.mean, temperature)
            losses.add("entropy", self.entropy.weight, value)
            losses.probabilities = probability_sums(result.latents, book, temperature)
            yield self.entropy.weight, value

    def _judge(self, result: Reconstruction, losses: Losses, weight: float | None) -> Tensor | None:
        """Add the discriminators' gradients.

        Returns:
            What the tokenizer may feel, unless the weight is None: the gradient of the pixels.
        """
        assert self.discriminators is not None
        grad = None
        with torch.autocast(result.pixels.device.type, torch.bfloat16, enabled=self.bf16):
            real, fake = self.discriminators(result.pixels), self.discriminators(result.rebuilt)
        if weight is not None:
            value = generator_term(fake)
            losses.add("adversarial", weight, value)
            (grad,) = torch.autograd.grad(value.sum(), result.rebuilt, retain_graph=True)
        theirs = discriminator_term(real, fake)
        if self.lecam is not None:
            theirs = theirs + self.lecam_weight * self.lecam(real, fake)
        losses.discriminators, losses.logits = theirs.detach(), logit_sums(real, fake)
        torch.autograd.backward(theirs.sum(), inputs=list(self._judges(result.pixels)))
        return grad

    def _judges(self, pixels: Tensor) -> Iterator[nn.Parameter]:
        """Parameters of the discriminators that see such samples."""
        assert self.discriminators is not None
        yield from self.discriminators.frames.parameters()
        if pixels.ndim == 5 and self.discriminators.clips is not None:
            yield from self.discriminators.clips.parameters()


def _grad(rebuilt: Tensor, weight: Tensor, grad: Tensor) -> Tensor:
    """The gradient of the last layer alone."""
    (found,) = torch.autograd.grad(rebuilt, weight, grad.to(rebuilt), retain_graph=True)
    return found


def psnr_db(result: Reconstruction) -> Tensor:
    """Peak signal-to-noise ratio of each sample as it is shown, clipped, in decibels: [b].

    At most 100: a white crop comes back exactly white once it is clipped.
    """
    given, shown = (x.add(1).div(2) for x in (result.pixels, result.rebuilt.detach().clamp(-1, 1)))
    return psnr_b(given, shown).clamp(max=EXACT_DB)
