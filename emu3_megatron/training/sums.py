"""An objective over batches on this rank's part of the mesh, and its sums over all ranks."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from emu3_kernels.exchange import Exchange, GroupExchange, NoExchange
from torch import Tensor

from emu3_megatron.data.batches import Batch
from emu3_megatron.errors import InputError
from emu3_megatron.model import Inputs
from emu3_megatron.parallel import Mesh
from emu3_megatron.parallel.groups import context_group
from emu3_megatron.training.interfaces import DecoderCall, Objective, Sums
from emu3_megatron.training.placing import Placer


class ObjectiveSums:
    """Computes an objective of a decoder, with or without training it.

    Attributes:
        place: gives a batch this rank's `inputs`; data workers apply it.
    """

    def __init__(self, objective: Objective, mesh: Mesh, place: Placer):
        self.objective, self.mesh, self.place = objective, mesh, place
        self.exchange: Exchange = NoExchange()
        if mesh.context_size > 1:
            self.exchange = GroupExchange(context_group(), point_to_point=True)

    def forward(
        self, decoder: DecoderCall, batch: Batch, denominators: Tensor
    ) -> tuple[Tensor, Sums]:
        """The objective of one micro-batch."""
        inputs: Inputs = (batch.inputs or self.place(batch).inputs).to(self.mesh.device)
        layout = replace(inputs.layout, exchange=self.exchange)
        return self.objective(decoder, replace(inputs, layout=layout), denominators)

    def sum(self, parts: Sequence[Sums]) -> Sums:
        """Add up this rank's micro-batches and all ranks with other tokens; fp64 on the CPU.

        Raises:
            InputError: micro-batches have sums of other names.
        """
        names = list(parts[0])
        for part in parts:
            if part.keys() != parts[0].keys():
                raise InputError(
                    f"objective: the sums of one micro-batch are {', '.join(names)}, those of "
                    f"another {', '.join(part)}; return the same names every time"
                )
        rows = [torch.cat([part[name].double().flatten() for name in names]) for part in parts]
        flat = torch.stack(rows)
        total = self.mesh.sum_over_tokens(flat.sum(0)).cpu()
        pieces = total.split([tensor.numel() for tensor in parts[0].values()])
        return {
            name: piece.view(tensor.shape)
            for (name, tensor), piece in zip(parts[0].items(), pieces, strict=True)
        }
