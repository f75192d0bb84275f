"""How the generator works, beside what it is asked for."""

from dataclasses import dataclass, field


@dataclass
class Accepted:
    """What guesses brought.

    Attributes:
        calls: of the decoder with guesses, each job's counted by itself.
        tokens: that were drawn in them.
    """

    calls: int = 0
    tokens: int = 0

    @property
    def per_call(self) -> float:
        """1 where no guess came true."""
        return self.tokens / self.calls if self.calls else 1.0


@dataclass(frozen=True)
class EngineOptions:
    """Options of a `Generator`, for what makes one.

    Attributes:
        eight_bit, speculate: see `Generator`.
        accepted: counts over all generators that were made with these options.
    """

    eight_bit: bool = False
    speculate: int = 1
    accepted: Accepted = field(default_factory=Accepted, compare=False)


PLAIN = EngineOptions()
