"""Opens the sources of a recipe: folders as they are, URLs and tars as folders that are listed."""

import glob
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from emu3_megatron.config.prepare import Kind
from emu3_megatron.errors import InputError
from emu3_megatron.media.files import escaped, name_of, search
from emu3_megatron.prepare.stores.access import asked, object_state, store_of
from emu3_megatron.prepare.stores.folders import TAR, State, StoredFolder, Tar
from emu3_megatron.prepare.stores.patterns import expand, fixed_folder, has_wildcards, is_pattern
from emu3_megatron.prepare.stores.tars import IndexTars, IndexTask
from emu3_megatron.prepare.workspace import Workspace, digest, file_state

_KINDS: tuple[Kind, ...] = ("images", "clips", "text")

States = Mapping[str, State]


def open_sources(workspace: Workspace, kinds: Sequence[Kind]) -> Workspace:
    """The same recipe, in which what is at a URL or in tars was listed.

    Raises:
        InputError: what the recipe names cannot be reached, or is not there.
    """
    opened: dict[str, Any] = {}
    for kind in _KINDS:
        if kind in kinds:
            config: Any = getattr(workspace.recipe, kind)
            source = _open(workspace, kind, config.source)
            opened[kind] = config.model_copy(update={"source": source})
    return replace(workspace, recipe=workspace.recipe.model_copy(update=opened))


def _open(workspace: Workspace, kind: str, source: Path | str) -> Path | StoredFolder:
    root: Path | str
    if isinstance(source, str):
        root, listed = _listed_url(source)
    else:
        root, listed = _listed_path(source)
    if isinstance(root, Path) and not listed:
        return root
    tars = {
        name: _tar(workspace, kind, root, state)
        for name, state in listed.items()
        if name.lower().endswith(TAR)
    }
    tasks = [IndexTask(tar.index, name, tar.content) for name, tar in tars.items()]
    workspace.run(IndexTars, tasks, f"{kind}: tars/B")
    is_searched = isinstance(source, Path) and source.is_dir()
    cache = workspace.out / ".work" / "inputs"
    return StoredFolder(root, cache, tars, None if is_searched else listed)


def _tar(workspace: Workspace, kind: str, root: Path | str, state: State) -> Tar:
    content = StoredFolder(root, workspace.out, listed={state[0]: state}).content(state[0])
    return Tar(content, state, workspace.work(kind, "tars") / f"{digest(state)}.parquet")


def _listed_path(source: Path) -> tuple[Path, States]:
    """What a pattern names, or the tars of a folder; nothing where there are none."""
    if source.is_dir():
        root, paths = source, search(source, {TAR}).paths
    elif is_pattern(str(source)):
        root = Path(fixed_folder(str(source)))
        paths = [path for name in expand(str(source)) for path in _matching(name)]
    elif source.suffix.lower() == TAR and source.is_file():
        root, paths = source.parent, [source]
    else:
        return source, {}
    states = [file_state(path, name_of(path, root)) for path in paths]
    return root, {state[0]: state for state in states}


def _matching(name: str) -> Iterator[Path]:
    names = sorted(glob.glob(name, recursive=True)) if has_wildcards(name) else [name]
    files = [path for path in map(Path, names) if path.is_file()]
    if not files:
        raise InputError(f"{name}: no such file")
    yield from files


def _listed_url(url: str) -> tuple[str, States]:
    """The folder, and the states of what is in it or is named by a pattern."""
    root = fixed_folder(url) if is_pattern(url) else url.rstrip("/")
    if root.endswith((":", "/")):
        raise InputError(f"{url}: begin it with the name of a bucket or folder")
    store, path = store_of(root)
    found = _found(root, partial(store.find, path, detail=True))
    if list(found) == [path]:  # one object
        root, path = root.rpartition("/")[0], path.rpartition("/")[0]
    elif is_pattern(url):
        found = {
            name: about for one in expand(url) for name, about in _chosen(store, one, found).items()
        }
    if not found:
        raise InputError(f"{url}: no such folder or object, or nothing in it")
    start = path.rstrip("/") + "/"
    states = (_state(name.removeprefix(start), about) for name, about in found.items())
    return root, {state[0]: state for state in states if state[0] and not state[0].endswith("/")}


def _found(url: str, ask: partial[dict[str, Any]]) -> dict[str, Any]:
    try:
        return asked(url, ask)
    except FileNotFoundError:
        raise InputError(f"{url}: no such bucket or folder") from None


def _chosen(store: Any, url: str, found: dict[str, Any]) -> dict[str, Any]:
    """Of what was found, what one of the names of a pattern stands for."""
    path = store_of(url)[1]
    if has_wildcards(url):
        chosen = _found(url, partial(store.glob, path, detail=True))
        chosen = {name: about for name, about in chosen.items() if name in found}
    else:
        chosen = {path: found[path]} if path in found else {}
    if not chosen:
        raise InputError(f"{url}: no such object")
    return chosen


def _state(name: str, about: Mapping[str, Any]) -> State:
    size, mark = object_state(about)
    return escaped(name.encode("utf-8", "surrogateescape")), size, mark
