"""The folder of an evaluation: what is complete in it, and what the suite's scorer is given.

FOLDER/evaluation.json holds the settings, FOLDER/generated.jsonl the seeds of every file, and
FOLDER/images or FOLDER/videos nothing but what the suite knows. A file appears under its name when
it is complete: it is written in FOLDER/.work and renamed.
"""

import hashlib
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from emu3_megatron.errors import InputError
from emu3_megatron.evaluation.suites.plan import Plan, Suite, SuiteFile, seed_of
from emu3_megatron.files import replacing, sync, write_json
from emu3_megatron.generation.files.begun import lock, require_same
from emu3_megatron.generation.files.outputs import RECORD

SETTINGS = "evaluation.json"
_SECONDS = 0.5  # between two looks for what other processes write


class Place:
    """The folder of one evaluation.

    Attributes:
        scored: the folder that the suite's scorer is given.
        work: for files that are being written.
    """

    def __init__(self, folder: Path, suite: Suite):
        self.folder, self.suite = folder, suite
        self.scored = folder / suite.folder
        self.work = folder / ".work"
        self._lock: TextIO | None = None

    def begin(self, plan: Plan, seed: int, about: dict[str, Any]) -> list[SuiteFile]:
        """Take the folder, and write all but what is to be drawn; returns what is missing.

        Args:
            seed: of the whole evaluation.
            about: settings, by which a run that goes on is known; JSON.

        Raises:
            InputError: the folder is another's or of other settings, or another process draws here.
        """
        settings = self.folder / SETTINGS
        known = settings.is_file()
        if not known and self.folder.exists() and any(p != self.work for p in self._inside()):
            raise InputError(f"{self.folder}: holds other files; choose another --out")
        self._lock = lock(self.folder, self.work / "lock")
        for unfinished in [path for path in self.work.iterdir() if path.name != "lock"]:
            unfinished.unlink()
        if known:
            require_same(self.folder, json.loads(settings.read_text(encoding="utf-8")), about)
        else:
            write_json(settings, about)
        self._write_texts(plan, seed)
        return self.missing(plan.files)

    def _inside(self) -> list[Path]:
        return list(self.folder.iterdir())

    def _write_texts(self, plan: Plan, seed: int) -> None:
        lines = [json.dumps(self._described(f, seed), ensure_ascii=False) for f in plan.files]
        texts = {
            self.folder / RECORD: "".join(f"{line}\n" for line in lines),
            **{self.scored / path: text for path, text in plan.texts.items()},
        }
        for path, text in texts.items():
            if not path.is_file() or path.read_text(encoding="utf-8") != text:
                with replacing(path) as beside:
                    beside.write_text(text, encoding="utf-8")

    def _described(self, file: SuiteFile, seed: int) -> dict[str, Any]:
        seeds = [seed_of(self.suite.name, file.prompt, n, seed) for n in file.numbers]
        return {"file": str(file.path), "prompt": file.prompt, "seeds": seeds}

    def missing(self, files: Sequence[SuiteFile]) -> list[SuiteFile]:
        """Those that are not there yet."""
        return [file for file in files if not (self.scored / file.path).is_file()]

    def keep(self, written: Path, file: SuiteFile) -> None:
        """Give a complete file from `work` its name."""
        path = self.scored / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        os.replace(written, path)
        sync(path.parent)

    def wait_for(self, files: Sequence[SuiteFile]) -> None:
        """Wait for what other processes draw.

        By looking, and not in a collective: their shares may take longer than one may wait there.
        """
        while files := self.missing(files):
            time.sleep(_SECONDS)

    def end(self) -> None:
        """All files are there."""
        (self.work / "lock").unlink()
        self.work.rmdir()


def digest_of(plan: Plan) -> str:
    """Of what is asked for, wherever the prompts file lies."""
    files = [[str(file.path), file.prompt, file.numbers] for file in plan.files]
    texts = sorted((str(path), text) for path, text in plan.texts.items())
    return hashlib.sha256(json.dumps([files, texts]).encode()).hexdigest()
