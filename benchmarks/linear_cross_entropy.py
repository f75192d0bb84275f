"""Head and loss, forward and backward: ours beside what else there is, on the same inputs.

`products` are the three matrix products alone at the next multiple of 128 rows, whose extents all
have fast kernels: nobody who computes the gradients once can beat them. `product` is one of equal
sides: what the device reaches. The model pads its rows, so does ours; the others get the rows
without padding. `error` is the larger of the errors of the two gradients, relative to fp64's. Rows
named log-probabilities take minus the mean of each token's, whose gradients are those of the loss;
ours computes a fourth product there, torch keeps the logits in both. Rows named `into main_grad`
add the weight's gradient to an fp32 buffer in forward, as training does; filling it with zeros is
timed too.
"""

import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from emu3_kernels.exchange import NoExchange
from emu3_kernels.linear_cross_entropy import linear_cross_entropy, token_log_probabilities
from harness import Case, main
from linear_cross_entropy_peers import PEERS
from torch.nn.functional import cross_entropy, linear, log_softmax

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
Gradients = tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Sizes:
    """One case.

    Attributes:
        vocabulary: ids of the head, or of one rank's share of it.
        ranks: that share the vocabulary.
        rows: of the head or share, with padding; by default there is none.
        last: the share is that of the last rank.
        whole: with the others' implementations too, not ours and torch's alone.
    """

    tokens: int
    vocabulary: int
    hidden: int
    ranks: int = 1
    rows: int = 0
    last: bool = False
    whole: bool = False

    def __str__(self) -> str:
        rows = f" of {self.rows:,} rows" if self.rows else ""
        sizes = f"n {self.tokens:,}, v {self.vocabulary:,}{rows}, h {self.hidden:,}"
        which = ", the last rank" if self.last else ""
        return f"{sizes} (TP {self.ranks}{which})" if self.ranks > 1 else sizes

    @property
    def before(self) -> int:
        """Rows of the ranks before this one."""
        return (self.ranks - 1) * self.rows if self.last else 0


class AmongSilent(NoExchange):
    """One of `size` ranks. The others answer at once, and hold nothing but padding.

    So ours does what a rank does, without the time of a network, and its gradients are those of
    the share alone, as everybody else's here.
    """

    def all_gather(self, tensor: torch.Tensor) -> Callable[[], torch.Tensor]:
        nothing = torch.zeros_like(tensor)
        nothing[0] = -torch.inf
        others = [nothing] * self.size
        return lambda: torch.stack([*others[: self.rank], tensor, *others[self.rank + 1 :]])


# Emu3's head, without padding too; shares of four and of eight ranks, of which the last is ragged.
GPU = [
    Sizes(5120, 184_622, 4096, rows=184_704),
    Sizes(8192, 184_622, 4096, rows=184_704, whole=True),
    Sizes(8192, 184_622, 4096),
    Sizes(8192, 46_208, 4096, ranks=4),
    Sizes(8192, 45_998, 4096, ranks=4, rows=46_208, last=True),
    Sizes(8192, 23_168, 4096, ranks=8),
    Sizes(8192, 22_446, 4096, ranks=8, rows=23_168, last=True),
    Sizes(32_768, 184_622, 4096, rows=184_704, whole=True),
]
GPU_QUICK = [Sizes(1024, 32_000, 1024, whole=True)]
CPU = [Sizes(4096, 151_936, 256), Sizes(4096, 23_168, 256, ranks=8, whole=True)]
CPU_QUICK = [Sizes(256, 990, 64, ranks=8, rows=1000, last=True), Sizes(256, 990, 64, rows=1000)]


class Inputs:
    """Hidden states as after a norm, a head that makes logits of a few units, any labels."""

    def __init__(self, sizes: Sizes):
        torch.manual_seed(0)
        dtype = torch.bfloat16 if DEVICE == "cuda" else torch.float32
        draw = partial(torch.randn, device=DEVICE, dtype=dtype)
        self.hidden = draw(sizes.tokens, sizes.hidden).requires_grad_()
        head = draw(sizes.rows or sizes.vocabulary, sizes.hidden)
        self.head = head.mul_(2 * sizes.hidden**-0.5).requires_grad_()
        self.unpadded = self.head.detach()[: sizes.vocabulary].requires_grad_()
        self.labels = torch.randint(sizes.vocabulary, (sizes.tokens,), device=DEVICE)
        self.sizes, self.vocab_size = sizes, sizes.before + sizes.vocabulary
        self.weights = torch.ones(sizes.tokens, device=DEVICE)
        self.classes = self.labels % 3
        rank = sizes.ranks - 1 if sizes.last else 0
        silent = AmongSilent(rank=rank, size=sizes.ranks)
        self.exchange = silent if sizes.ranks > 1 else NoExchange()
        self.exact: list[torch.Tensor] = []

    def gradients(self, loss: Callable[..., torch.Tensor]) -> Gradients:
        """By hidden states and head without padding, of a mean over tokens."""
        return torch.autograd.grad(
            loss(self.hidden, self.unpadded, self.labels), (self.hidden, self.unpadded)
        )

    def our_gradients(self, loss: Callable[..., torch.Tensor]) -> Gradients:
        """By hidden states and head; labels are counted over all ranks."""
        labels = self.labels + self.sizes.before
        return torch.autograd.grad(loss(self.hidden, self.head, labels), (self.hidden, self.head))

    def error(self, gradients: Gradients, seconds: float) -> dict[str, Any]:
        if not self.exact:
            self.exact = list(self._in_fp64())
        by_hidden, by_head = gradients
        gradients = by_hidden, by_head[: self.sizes.vocabulary]
        pairs = zip(gradients, self.exact, strict=True)
        return {"error": max(_distance(found, exact) for found, exact in pairs)}

    @torch.no_grad()
    def _in_fp64(self) -> Gradients:
        """Chunked by hand, none of our code; kept in fp32, exact enough to compare with."""
        head = self.unpadded.double()
        by_hidden, by_head = torch.empty_like(self.hidden, dtype=torch.float32), 0
        for at in torch.arange(len(self.hidden), device=DEVICE).split(512):
            hidden = self.hidden[at].double()
            p = (hidden @ head.T).softmax(1)
            p[torch.arange(len(at), device=DEVICE), self.labels[at]] -= 1
            p /= len(self.hidden)
            by_hidden[at] = (p @ head).float()
            by_head += p.T @ hidden
        return by_hidden, by_head.float()


def _distance(found: torch.Tensor, exact: torch.Tensor) -> float:
    """Relative to the norm of what is exact; by parts, as fp64 of everything may not fit."""
    parts = zip(found.split(8192), exact.split(8192), strict=True)
    squares = sum((one.double() - other.double()).square().sum().item() for one, other in parts)
    return (squares / exact.double().square().sum().item()) ** 0.5


def ours(inputs: Inputs, backend: Literal["auto", "triton"]) -> Gradients:
    def loss(hidden: torch.Tensor, head: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        sums = linear_cross_entropy(
            hidden,
            head,
            labels,
            inputs.weights,
            inputs.classes,
            vocab_size=inputs.vocab_size,
            exchange=inputs.exchange,
            backend=backend,
        )
        return sums.loss / len(hidden)

    return inputs.our_gradients(loss)


class IntoMainGrad:
    """Ours as it trains: the head's gradient goes to a buffer that is there before and after."""

    def __init__(self, inputs: Inputs):
        self.inputs = inputs
        self.main_grad = torch.zeros_like(inputs.head, dtype=torch.float32)
        self.scale = torch.tensor(1 / len(inputs.hidden), device=DEVICE)

    def __call__(self) -> Gradients:
        inputs = self.inputs
        self.main_grad.zero_()
        sums = linear_cross_entropy(
            inputs.hidden,
            inputs.head,
            inputs.labels + inputs.sizes.before,
            inputs.weights,
            inputs.classes,
            vocab_size=inputs.vocab_size,
            exchange=inputs.exchange,
            main_grad_vh=self.main_grad,
            known_scale=self.scale,
        )
        (by_hidden,) = torch.autograd.grad(sums.loss * self.scale, inputs.hidden)
        return by_hidden, self.main_grad


def our_log_probabilities(inputs: Inputs, backend: Literal["auto", "triton"]) -> Gradients:
    def loss(hidden: torch.Tensor, head: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        sizes = {"vocab_size": inputs.vocab_size, "exchange": inputs.exchange}
        return -token_log_probabilities(
            hidden, head, labels, backend=backend, **sizes
        ).log_prob.mean()

    return inputs.our_gradients(loss)


def torchs(hidden: torch.Tensor, head: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return cross_entropy(linear(hidden, head), labels)


def torchs_log_probabilities(
    hidden: torch.Tensor, head: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    log_probs = log_softmax(linear(hidden, head), 1, dtype=torch.float32)
    return -log_probs.gather(1, labels[:, None]).mean()


class Products:
    """The products of one chunk, as often as there are chunks; logits only where they are made."""

    def __init__(self, inputs: Inputs, aligned: bool = True):
        head = inputs.unpadded.detach()
        rows = -(-len(head) // 128) * 128 if aligned else len(head)
        self.hidden = inputs.hidden.detach()
        self.head = torch.cat([head, head.new_zeros(rows - len(head), head.shape[1])])
        size = min(4096 if DEVICE == "cuda" else 512, len(self.hidden))
        self.by_logits = head.new_empty(size, rows)

    def __call__(self) -> None:
        for chunk in self.hidden.split(len(self.by_logits)):
            by_logits = self.by_logits[: len(chunk)]
            torch.mm(chunk, self.head.T, out=by_logits)
            by_logits @ self.head
            by_logits.T @ chunk


def cases(quick: bool) -> Iterator[Case]:
    sizes_of = {"cuda": (GPU, GPU_QUICK), "cpu": (CPU, CPU_QUICK)}[DEVICE][quick]
    yield _aligned_product(256 if quick else 8192 if DEVICE == "cuda" else 2048)
    for sizes in sizes_of:
        yield from _of_sizes(sizes)
    for sizes in sizes_of:  # the slowest last: a time limit may cut them off
        if sizes.whole:
            inputs = Inputs(sizes)
            for name, peer in PEERS.items():
                run = partial(_peer, inputs, peer)
                yield Case(str(sizes), name, run, figures=inputs.error, tensors=True)
            del inputs, run
            gc.collect()


def _aligned_product(side: int) -> Case:
    dtype = torch.bfloat16 if DEVICE == "cuda" else torch.float32
    one = torch.randn(side, side, device=DEVICE, dtype=dtype)
    figures = lambda result, seconds: {"tflops": 2 * side**3 / seconds / 1e12}
    return Case(f"{side:,} x {side:,} x {side:,}", "product", lambda: one @ one, figures, True)


def _of_sizes(sizes: Sizes) -> Iterator[Case]:
    """Ours, torch's, and the floor."""
    inputs = Inputs(sizes)
    case = partial(Case, str(sizes), figures=inputs.error, tensors=True)
    names = {"auto": "emu3", "triton": "emu3 (triton)"} if DEVICE == "cuda" else {"auto": "emu3"}
    for backend, name in names.items():
        yield case(name, partial(ours, inputs, backend))
    yield case("emu3, into main_grad", IntoMainGrad(inputs))
    yield Case(str(sizes), "products", Products(inputs), tensors=True)
    if not sizes.rows and sizes.vocabulary % 8:
        run: Callable[[], Any] = Products(inputs, aligned=False)
        yield Case(str(sizes), "products, rows as they are", run, tensors=True)
    yield case("torch", partial(inputs.gradients, torchs))
    for backend, name in names.items():
        run = partial(our_log_probabilities, inputs, backend)
        yield case(f"{name}, log-probabilities", run)
    yield case("torch, log-probabilities", partial(inputs.gradients, torchs_log_probabilities))
    del inputs, case, run
    gc.collect()


def _peer(inputs: Inputs, peer: Callable[[], Callable[..., torch.Tensor]]) -> Gradients:
    return inputs.gradients(peer())


if __name__ == "__main__":
    main(cases, repeats=10 if DEVICE == "cuda" else 3)
