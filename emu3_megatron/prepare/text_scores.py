"""Writes tables of what filters ask of each text: its language, and how much in it is personal."""

from collections.abc import Iterator
from functools import partial
from typing import Any

from emu3_megatron.config.prepare import TextConfig
from emu3_megatron.prepare.items import Failed, attempt, attempt_each
from emu3_megatron.prepare.streams import Stream
from emu3_megatron.prepare.tables import Row, write_table
from emu3_megatron.prepare.text_files import Decode, read_texts, text_of
from emu3_megatron.prepare.text_filters import text_scores
from emu3_megatron.prepare.text_tasks import TextTask


class ScoreText:
    """Writes the scores of the texts of some ranges.

    What cannot be read has no row: tokenising the text says why.
    """

    def __init__(self, config: TextConfig):
        self._config = config
        self._stream = Stream()

    def __call__(self, task: TextTask) -> None:
        write_table(task.out, "text scores", list(self._rows(task)))

    def _rows(self, task: TextTask) -> Iterator[Row]:
        for part in task.ranges:
            for found in attempt_each(part.name, read_texts(self._config, part, self._stream)):
                if isinstance(found, Failed):
                    continue
                where, decode, data = found
                scores = attempt(where, partial(self._scores, decode, data), timed=False)
                if not isinstance(scores, Failed):
                    yield {"text": where, **scores}

    def _scores(self, decode: Decode, data: Any) -> Row:
        return text_scores(text_of(decode, data, self._config.min_characters)[0], self._config)
