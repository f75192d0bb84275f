"""Dispatch: how even the work of context parallel ranks is, and what they exchange.

Ours beside zigzag over the pack, contiguous shares, and zigzag in every document, as others do it,
for which each document is padded to 2 x ranks. Means over packs of 131,072 tokens; times are of
one pack. Nothing here needs a GPU.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
from balance import Balance
from harness import Case, main
from simulated_packs import KINDS, simulated_packs

from emu3_megatron.context_parallel.dispatch import dispatch

# An order of a pack: where its segments begin after padding, and who holds what.
Order = tuple[np.ndarray, np.ndarray]


def emu3(boundaries: np.ndarray, ranks: int) -> Order:
    return boundaries, dispatch(boundaries, ranks)


def contiguous(boundaries: np.ndarray, ranks: int) -> Order:
    return boundaries, np.arange(boundaries[-1]).reshape(ranks, -1)


def zigzag(boundaries: np.ndarray, ranks: int) -> Order:
    chunks = np.arange(boundaries[-1]).reshape(2 * ranks, -1)
    return boundaries, np.concatenate([chunks[:ranks], chunks[ranks:][::-1]], axis=1)


def per_document_zigzag(boundaries: np.ndarray, ranks: int) -> Order:
    lengths = -(-np.diff(boundaries) // (2 * ranks)) * 2 * ranks
    padded = np.append(0, np.cumsum(lengths))
    documents = [
        begin + zigzag(np.array([0, length]), ranks)[1]
        for begin, length in zip(padded[:-1], lengths, strict=True)
    ]
    return padded, np.concatenate(documents, axis=1)


IMPLEMENTATIONS: dict[str, Callable[[np.ndarray, int], Order]] = {
    "emu3": emu3,
    "zigzag": zigzag,
    "contiguous": contiguous,
    "per-document-zigzag": per_document_zigzag,
}


class Packs:
    """Packs in turn: each call orders the next one."""

    def __init__(self, order: Callable[[np.ndarray, int], Order], kind: str, number: int):
        self.order, self.packs, self.calls = order, simulated_packs(kind, number), 0

    def next(self, ranks: int) -> Order:
        self.calls += 1
        return self.order(self.packs[self.calls % len(self.packs)], ranks)

    def figures(self, result: Order, seconds: float, ranks: int) -> dict[str, Any]:
        """Means and worst over all packs; work and exchange count padding, as the mean of work and
        the ring of the pack without padding are what they are measured by."""
        work, exchange, all_ranks, wasted = [], [], [], []
        for boundaries in self.packs:
            plain = Balance.of(*contiguous(boundaries, ranks))
            padded, order_cs = self.order(boundaries, ranks)
            balance = Balance.of(padded, order_cs)
            work.append(balance.work_c.max() / plain.work_c.mean())
            exchange.append(balance.keys_c.max() / plain.ring)
            all_ranks.append(balance.keys_c.mean() / plain.ring)
            wasted.append(int(padded[-1] - boundaries[-1]))
        return {
            "work_max_over_mean": float(np.mean(work)),
            "work_max_over_mean_worst": float(np.max(work)),
            "exchange_fraction": float(np.mean(exchange)),
            "exchange_fraction_worst": float(np.max(exchange)),
            "exchange_fraction_mean_rank": float(np.mean(all_ranks)),
            "padding_tokens": float(np.mean(wasted)),
            "packs": len(self.packs),
        }


def dispatch_rows(quick: bool) -> Iterator[Case]:
    """Cases `dispatch/KIND/cpN`."""
    for kind in KINDS:
        for ranks in (2, 8) if quick else (2, 4, 8, 16, 32, 64):
            for name, order in IMPLEMENTATIONS.items():
                packs = Packs(order, kind, 2 if quick else 8)
                yield Case(
                    f"dispatch/{kind}/cp{ranks}",
                    name,
                    partial(packs.next, ranks),
                    partial(packs.figures, ranks=ranks),
                )


if __name__ == "__main__":
    main(dispatch_rows, repeats=8)
