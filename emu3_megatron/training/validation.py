"""Held-out loss: the objective over data that no step learns from."""

from collections.abc import Callable

from emu3_megatron.config import Recipe
from emu3_megatron.data.batches import step_batches
from emu3_megatron.data.samples import open_held_out
from emu3_megatron.parallel import Mesh
from emu3_megatron.training.objective import Totals
from emu3_megatron.training.step import TrainStep
from emu3_megatron.vocabulary import Vocabulary


class Validation:
    """The recipe's `validation`, ready to be measured again and again.

    Raises:
        InputError: at once if its data cannot be read, not when the first evaluation is due.
    """

    def __init__(self, recipe: Recipe, vocabulary: Vocabulary, mesh: Mesh, step: TrainStep):
        assert recipe.validation is not None
        self.recipe, self.mesh, self.step = recipe, mesh, step
        self.batches = recipe.validation.batches
        self.samples = open_held_out(recipe, vocabulary)

    def measure(self, goes_on: Callable[[], bool]) -> Totals | None:
        """The objective's sums over all batches and ranks, by the weights as they are.

        Args:
            goes_on: asked before every batch, on all ranks alike.

        Returns:
            None if it was not to go on to the end.
        """
        batches = step_batches(
            self.samples,
            global_batch=self.recipe.batch.size,
            micro_batch=self.recipe.batch.micro_size,
            data_rank=self.mesh.data_rank,
            data_size=self.mesh.data_size,
            first_step=0,
            last_step=self.batches,
        )
        parts = []
        for micro_batches in batches:
            if not goes_on():
                return None
            parts += self.step.evaluate(micro_batches)
        return Totals.over_ranks(parts, self.mesh)
