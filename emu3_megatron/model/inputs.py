"""The decoder's inputs: one rank's part of a batch."""

from dataclasses import dataclass, field, replace

from emu3_kernels.movable import Movable, Move
from torch import Tensor

from emu3_megatron.model.layout import SequenceLayout


@dataclass(frozen=True)
class Inputs(Movable):
    """This context parallel rank's tokens of a batch, in ascending order within each row.

    Attributes:
        tokens_bs: int64.
        positions_bs: int64, of each token inside its document.
        layout: which tokens see which.
        labels_bs: int64, the token to predict; IGNORE where there is none.
        weights_bs: float32, of each label in the loss.
        classes_bs: int64, class of each label by the vocabulary.
        starts: for each row where each of its documents, and the padding if there is any, begins
            among these tokens, and their number at the end, int64 [documents + 1 or 2].
        kept: int64 [k], which tokens have a label that is not IGNORE, ascending, where tokens are
            counted with the position first: `labels_bs.T.flatten()`. None leaves the decoder's
            head to find them, for which the host waits for the device.
        columns: further values of each token by name, float32 [b, s].
    """

    tokens_bs: Tensor
    positions_bs: Tensor
    layout: SequenceLayout
    labels_bs: Tensor | None = None
    weights_bs: Tensor | None = None
    classes_bs: Tensor | None = None
    starts: tuple[Tensor, ...] = ()
    kept: Tensor | None = None
    columns: dict[str, Tensor] = field(default_factory=dict)

    def map_tensors(self, move: Move) -> "Inputs":
        optional = lambda tensor: None if tensor is None else move(tensor)
        return replace(
            self,
            tokens_bs=move(self.tokens_bs),
            positions_bs=move(self.positions_bs),
            layout=self.layout.map_tensors(move),
            labels_bs=optional(self.labels_bs),
            weights_bs=optional(self.weights_bs),
            classes_bs=optional(self.classes_bs),
            starts=tuple(move(row) for row in self.starts),
            kept=optional(self.kept),
            columns={name: move(column) for name, column in self.columns.items()},
        )
