"""File systems that lack what others have: hard links, a flush of folders."""

import errno
import os
import stat

import pytest

from emu3_megatron.errors import InputError
from emu3_megatron.files import sync
from emu3_megatron.runs.lock import RunLock


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EPERM, errno.ENOTSUP])
def test_a_file_system_without_hard_links_has_locks_too(number, tmp_path, monkeypatch):
    def refuse(*arguments):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refuse)
    mine = RunLock(tmp_path)

    with pytest.raises(InputError, match="is training here"):
        RunLock(tmp_path)
    mine.release()
    RunLock(tmp_path).release()


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_a_file_system_that_cannot_flush_a_folder_is_no_failure(number, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("", encoding="utf-8")
    flush, flushed = os.fsync, []

    def refuse_folders(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        flushed.append(flush(descriptor))

    monkeypatch.setattr(os, "fsync", refuse_folders)
    sync(tmp_path)
    sync(tmp_path / "file")

    assert len(flushed) == 1


@pytest.mark.parametrize(("what", "number"), [("file", errno.EINVAL), (".", errno.EIO)])
def test_whatever_else_fails_to_be_flushed_is(what, number, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("", encoding="utf-8")

    def refuse(descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match=os.strerror(number)):
        sync(tmp_path / what)
