"""One voter's way through the prompts: blind order, what is done, undo."""

import random
from dataclasses import dataclass
from typing import Any

from emu3_megatron.alignment.samples import Samples
from emu3_megatron.alignment.votes import VoteLog
from emu3_megatron.errors import InputError


@dataclass
class Session:
    """What a voter sees and says. It holds nothing: the file of votes is read at each request.

    Samples are known by their position on the page; which is which is shuffled for each voter and
    prompt, and always in the same way.
    """

    samples: Samples
    voter: str

    def __post_init__(self) -> None:
        self.log = VoteLog(self.samples, self.voter)

    def order(self, prompt: int) -> list[int]:
        """The number of the sample at each position."""
        order = list(range(len(self.samples.prompts[prompt])))
        random.Random(f"{self.samples.about['records']}/{self.voter}/{prompt}").shuffle(order)
        return order

    def state(self, prompt: int | None = None) -> dict[str, Any]:
        """What the page shows: a prompt, by default the first without a vote, and the progress."""
        done = self.log.votes()
        total = len(self.samples.prompts)
        if prompt is None:
            prompt = next((i for i in range(total) if i not in done), None)
        return {
            "done": len(done),
            "total": total,
            "can_undo": bool(done),
            "prompt": None if prompt is None else self._show(prompt),
        }

    def _show(self, prompt: int) -> dict[str, Any]:
        samples = [self.samples.prompts[prompt][number] for number in self.order(prompt)]
        shown = {
            "number": prompt,
            "text": samples[0].text,
            "kind": samples[0].kind,
            "samples": len(samples),
        }
        if shown["kind"] == "text":
            files = [self.samples.folder / sample.media for sample in samples]
            shown["texts"] = [file.read_text(encoding="utf-8") for file in files]
        return shown

    def media(self, prompt: int, position: int) -> str:
        """Path inside the folder of what stands at a position; raises IndexError."""
        return self.samples.prompts[prompt][self.order(prompt)[position]].media

    def vote(self, prompt: Any, best: Any, worst: Any) -> None:
        """Write down the positions of the best and the worst."""
        if not isinstance(prompt, int) or not 0 <= prompt < len(self.samples.prompts):
            raise InputError(f"prompt {prompt!r}: there is no such prompt")
        order = self.order(prompt)
        for position in (best, worst):
            if not isinstance(position, int) or not 0 <= position < len(order):
                raise InputError(f"position {position!r}: there is no such sample")
        self.log.append(prompt, best=order[best], worst=order[worst])

    def no_difference(self, prompt: Any) -> None:
        self.log.append(prompt, no_difference=True)

    def undo(self) -> int | None:
        """Take the newest vote back; its prompt, None without any vote."""
        newest = next(reversed(self.log.votes()), None)
        if newest is not None:
            self.log.append(newest, undone=True)
        return newest
