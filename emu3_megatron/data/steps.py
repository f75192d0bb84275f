"""`emu3 inspect batch`: the documents of a step, from its number alone."""

from collections.abc import Iterator

from emu3_megatron.data.phases import PhasedMixture


def documents_of_step(mixture: PhasedMixture, step: int, batch_size: int) -> Iterator[str]:
    """A line for each sample of a step, and one for each piece of a document in it.

    Args:
        step: counted from 1, as in logs, metrics and checkpoints.
        batch_size: samples a step.
    """
    for sample in range((step - 1) * batch_size, step * batch_size):
        source, pack = mixture[sample]
        yield f"sample {sample:,}: pack {pack:,} of {source.path}"
        for store, document, start, length in source.pieces(pack):
            part = "" if length == store.spans(document)[0].sum() else f" from token {start:,}"
            yield f"  {store.name} document {document:,}: {length:,} tokens{part}"
