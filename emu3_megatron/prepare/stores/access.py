"""Reaches an object store through fsspec, and says in one line why it cannot."""

import time
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, TypeVar

from emu3_megatron.errors import InputError
from emu3_megatron.media.files import reason_of
from emu3_megatron.prepare.items import RunFault

T = TypeVar("T")

_TRIES = 3
_PAUSE = 1.0  # seconds before the second try, and twice as long before the third
_NO_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError")
_GIVE_CREDENTIALS = (
    "give credentials as fsspec's package for it takes them: of S3 AWS_ACCESS_KEY_ID and "
    "AWS_SECRET_ACCESS_KEY, or a profile"
)
# By what stores say that an object is another one than before, the surest first.
_MARKS = ("ETag", "etag", "md5Hash", "content_md5", "mtime", "LastModified", "updated", "created")
# Said by their store; to ask again changes nothing.
_FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)


def is_url(source: Any) -> bool:
    return isinstance(source, str) and "://" in source


def store_of(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it.

    Raises:
        InputError: fsspec or a package of it is missing, or knows no such scheme.
    """
    scheme = url.partition("://")[0]
    try:
        import fsspec

        file_system, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        package = "fsspec" if error.name == "fsspec" else reason_of(error)
        raise InputError(
            f"{url}: {scheme}:// needs a package that is not installed ({package}); install it "
            "with pip, for s3:// s3fs"
        ) from None
    except ValueError as error:
        raise InputError(f"{url}: fsspec cannot open it ({reason_of(error)})") from None
    except Exception as error:  # what a package raises that lacks its settings
        raise InputError(_line_of(url, error)) from None
    return file_system, str(path)


def asked(url: str, ask: Callable[[], T]) -> T:
    """What a store answers; it is asked again when it cannot be reached.

    Raises:
        FileNotFoundError: there is no such object.
        RunFault: credentials are missing or refused, or the store cannot be reached. No other item
            would fare better, so the run stops.
    """
    for number in range(_TRIES):
        try:
            return ask()
        except FileNotFoundError:
            raise
        except Exception as error:  # each package of fsspec has its own
            if number + 1 == _TRIES or _is_final(error):
                raise RunFault(_line_of(url, error)) from None
        time.sleep(_PAUSE * 2**number)
    raise AssertionError("the last try returns or raises")


def object_state(about: Mapping[str, Any]) -> tuple[int, str]:
    """Size of an object, and what changes with its content, of what its store says of it."""
    mark = next((about[key] for key in _MARKS if about.get(key)), "")
    text = str(mark.timestamp() if isinstance(mark, datetime) else mark)
    return int(about.get("size") or 0), text


def _is_final(error: Exception) -> bool:
    return isinstance(error, _FINAL) or type(error).__name__ in _NO_CREDENTIALS


def _line_of(url: str, error: Exception) -> str:
    said = f"{type(error).__name__}: {reason_of(error)}"
    if type(error).__name__ in _NO_CREDENTIALS:
        return f"{url}: no credentials; {_GIVE_CREDENTIALS}"
    if isinstance(error, PermissionError):
        return f"{url}: access refused ({reason_of(error)}); {_GIVE_CREDENTIALS} that may do it"
    return (
        f"{url}: cannot be reached ({said}); once it can, run the same command, it goes on where "
        "it stopped"
    )
