"""Captions of images and clips: from files, else from a server."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Lock

from emu3_megatron.config.prepare import CaptionConfig, EndpointConfig
from emu3_megatron.errors import InputError
from emu3_megatron.media.files import Folder
from emu3_megatron.prepare.captions.answers import NoCaption
from emu3_megatron.prepare.captions.endpoint import Endpoint
from emu3_megatron.prepare.captions.files import Captions
from emu3_megatron.prepare.items import Failed, attempt
from emu3_megatron.prepare.tables import Row, read_tables, write_table
from emu3_megatron.prepare.workspace import Workspace, chunks, digest

ReadPictures = Callable[[Row], Sequence[bytes]]
"""Gives the pictures of a row as `as_sent` makes them: an image, or frames of a clip."""

_UNUSABLE = ("no caption", "no score", "unreadable")
_ROWS = 32  # a task, so that little is asked twice after a kill


@dataclass(frozen=True)
class CaptionTask:
    out: Path
    rows: list[Row]

    @property
    def size(self) -> int:
        return len(self.rows)


class WriteCaptions:
    """Asks for the captions of a few rows at once, and writes them to a table."""

    def __init__(self, config: EndpointConfig, read: ReadPictures):
        self._endpoint, self._read = Endpoint(config), read
        self._reading = Lock()  # only one item is at work at a time, as `attempt` wants it

    def __call__(self, task: CaptionTask) -> None:
        with ThreadPoolExecutor(self._endpoint.config.concurrency) as pool:
            rows = list(pool.map(self._ask, task.rows))
        write_table(task.out, "captions", rows)

    def _ask(self, row: Row) -> Row:
        with self._reading:
            pictures = attempt(row_key(row), partial(self._read, row))
        if isinstance(pictures, Failed):
            return _no_caption(row, f"unreadable: {pictures.reason}")
        try:
            captions = _as_texts(self._endpoint.captions(pictures))
            return {"key": row_key(row), "captions": captions}
        except NoCaption as error:
            return _no_caption(row, str(error))
        except UnicodeError:
            return _no_caption(row, "the endpoint's answer is not UTF-8 text")


def _no_caption(row: Row, reason: str) -> Row:
    return {"key": row_key(row), "captions": [], "error": reason}


def _of_files(captions: Captions, source: str) -> list[str]:
    return _as_texts(captions.of(source))


def _as_texts(captions: list[str]) -> list[str]:
    """The same. Raises UnicodeError at a lone surrogate, which JSON can spell and is no text."""
    for caption in captions:
        caption.encode()
    return captions


def row_key(row: Row) -> str:
    """By what a picture is recognised wherever it lies."""
    return digest(row["content"], row.get("start_frame"), row.get("end_frame"))


def captions_of_files(rows: Sequence[Row], config: CaptionConfig, source: Folder) -> None:
    """Fill `captions` of what is kept, from files.

    What stays without one is set aside, unless there is an endpoint to ask.
    """
    captions = Captions(config, source)
    for row in rows:
        row["captions"] = []
        if row["kept"]:
            found = attempt(row["source"], partial(_of_files, captions, row["source"]))
            if isinstance(found, Failed):
                row["kept"], row["reason"] = False, f"no caption: {found.reason}"
            elif found or config.endpoint:
                row["captions"] = found
            else:
                row["kept"], row["reason"] = False, "no caption: none found"


def ask_for_captions(
    workspace: Workspace,
    kind: str,
    rows: Sequence[Row],
    config: EndpointConfig,
    read: ReadPictures,
) -> None:
    """Fill `captions` of what is kept and has none; what the endpoint refuses is set aside."""
    without = [row for row in rows if row["kept"] and not row["captions"]]
    answers = _ask(workspace, kind, without, config, read)
    for row in without:
        answer = answers[row_key(row)]
        row["captions"] = answer["captions"]
        if error := answer["error"]:
            unreadable = error.startswith("unreadable: ")
            row["kept"], row["reason"] = False, error if unreadable else f"no caption: {error}"


def _ask(
    workspace: Workspace, kind: str, rows: Sequence[Row], config: EndpointConfig, read: ReadPictures
) -> dict[str, Row]:
    """Answers by the keys of rows.

    What was answered once is never asked again, whatever else is kept now; what the endpoint
    refused is.
    """
    asked = config.model_dump(include={"model", "prompts", "max_tokens", "side"})
    folder = workspace.work(kind, "captions") / digest(asked)
    answers = {row["key"]: row for row in read_tables(folder.glob("*.parquet")) if row["captions"]}
    missing = [row for row in rows if row_key(row) not in answers]
    tasks = [
        CaptionTask(folder / f"{digest([row_key(row) for row in some])}.parquet", some)
        for some in chunks(missing, _ROWS)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    workspace.run_all(partial(WriteCaptions, config, read), tasks, f"{kind}: captions/item")
    return answers | {row["key"]: row for row in read_tables(task.out for task in tasks)}


def refuse_unusable(rows: Sequence[Row], strict: bool) -> None:
    """With `strict`, raise InputError at the first item that cannot be used."""
    for row in rows:
        unusable = row["error"] or (row["reason"] or "").startswith(_UNUSABLE)
        if strict and unusable:
            raise InputError(
                f"{row['source']}: {row['error'] or row['reason']}; repair it, or let it be "
                "set aside without strict"
            )
