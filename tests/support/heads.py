"""Cases for the fused head, its loss and log-probabilities, and what plain torch makes of them."""

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from emu3_kernels.linear_cross_entropy import (
    IGNORE,
    linear_cross_entropy,
    token_log_probabilities,
)
from torch.distributions import Categorical
from torch.nn.functional import cross_entropy, linear, log_softmax
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@dataclass(frozen=True)
class HeadCase:
    hidden: torch.Tensor
    head: torch.Tensor
    labels: torch.Tensor
    weights: torch.Tensor
    classes: torch.Tensor
    vocab_size: int

    @classmethod
    def random(cls, tokens, vocab_size, hidden, dtype=torch.float64, device="cpu", seed=0):
        generator = torch.Generator(device).manual_seed(seed)
        options = {"generator": generator, "device": device}
        return cls(
            hidden=torch.randn(tokens, hidden, dtype=torch.float64, **options).to(dtype),
            head=torch.randn(vocab_size, hidden, dtype=torch.float64, **options).to(dtype),
            labels=torch.randint(vocab_size, (tokens,), **options),
            weights=torch.tensor([1, 0.5, 0, 2], device=device).repeat(tokens)[:tokens].to(dtype),
            classes=torch.arange(tokens, device=device) % 3,
            vocab_size=vocab_size,
        )

    def take(self, tokens):
        """Only some of the tokens."""
        per_token = ("hidden", "labels", "weights", "classes")
        return replace(self, **{name: getattr(self, name)[tokens] for name in per_token})

    def padded(self, rows, value=1e3):
        """With rows past the vocabulary that would win every softmax."""
        padding = self.head.new_full((rows, self.head.shape[1]), value)
        return replace(self, head=torch.cat([self.head, padding]))

    def share(self, rank, size):
        """The rows of one of the ranks that share the vocabulary."""
        return replace(self, head=self.head.chunk(size)[rank])

    def to(self, dtype):
        """In another type; what was rounded stays rounded."""
        tensors = {field.name: getattr(self, field.name) for field in fields(self)}
        floats = {
            name: tensor.to(dtype)
            for name, tensor in tensors.items()
            if isinstance(tensor, torch.Tensor) and tensor.is_floating_point()
        }
        return replace(self, **floats)

    def __call__(self, scale=1.0, **settings):
        """The sums, and the loss's gradients by hidden states and head."""
        hidden, head = (t.clone().requires_grad_() for t in (self.hidden, self.head))
        sums = self.sums(hidden, head, **settings)
        (scale * sums.loss).backward()
        return sums, hidden.grad, head.grad

    def sums(self, hidden, head, **settings):
        targets = self.labels, self.weights, self.classes
        return linear_cross_entropy(hidden, head, *targets, vocab_size=self.vocab_size, **settings)

    def by_torch(self, z_loss=0.0):
        """The same by torch: loss, gradients, and the nll of each token."""
        hidden, head = (t.clone().requires_grad_() for t in (self.hidden, self.head))
        logits = linear(hidden, head)
        nll = cross_entropy(logits, self.labels, reduction="none", ignore_index=IGNORE)
        kept = self.labels != IGNORE
        loss = (self.weights * kept * (nll + z_loss * logits.logsumexp(1) ** 2)).sum()
        loss.backward()
        return loss.detach(), hidden.grad, head.grad, nll.detach()

    def log_probabilities(self, **settings):
        """Log-probabilities, correct and entropy, and the gradients of `contrast` of the first."""
        hidden, head = (t.clone().requires_grad_() for t in (self.hidden, self.head))
        values = token_log_probabilities(
            hidden, head, self.labels, vocab_size=self.vocab_size, **settings
        )
        contrast(values.log_prob).backward()
        return *(value.detach() for value in values), hidden.grad, head.grad

    def log_probabilities_by_torch(self):
        """The same by torch."""
        hidden, head = (t.clone().requires_grad_() for t in (self.hidden, self.head))
        kept = self.labels != IGNORE
        logits = linear(hidden, head)
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        all_log_prob = log_softmax(wide, 1)
        log_prob = all_log_prob.gather(1, self.labels.clamp(min=0)[:, None])[:, 0].where(kept, 0.0)
        contrast(log_prob).backward()
        correct = kept & (logits.argmax(1) == self.labels)
        entropy = Categorical(logits=all_log_prob.detach()).entropy().where(kept, 0.0)
        return log_prob.detach(), correct, entropy, hidden.grad, head.grad


def contrast(log_prob):
    """A loss that raises some tokens and lowers others, and is not linear in any."""
    signs = torch.arange(len(log_prob), device=log_prob.device).cos()
    return (signs * log_prob + log_prob.square() / 100).sum()


class Outputs(TorchDispatchMode):
    """Remembers the names of all operations, and the most elements of a tensor that one gave."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0
        self.names: set[str] = set()

    def __torch_dispatch__(self, function: Any, types: Any, arguments=(), keywords=None) -> Any:
        result = function(*arguments, **(keywords or {}))
        self.names.add(function.overloadpacket.__name__)
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        self.largest = max([self.largest, *sizes])
        return result


def error(found, exact):
    """Norm of the difference relative to the norm of what is exact, in fp64."""
    exact = exact.double()
    return ((found.double() - exact).norm() / exact.norm()).item()
