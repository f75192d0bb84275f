"""Cases for the fused head and loss, and what torch's cross-entropy makes of them."""

from dataclasses import dataclass, fields, replace

import torch
from emu3_kernels.linear_cross_entropy import IGNORE, linear_cross_entropy
from torch.nn.functional import cross_entropy, linear


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


def error(found, exact):
    """Norm of the difference relative to the norm of what is exact, in fp64."""
    exact = exact.double()
    return ((found.double() - exact).norm() / exact.norm()).item()
