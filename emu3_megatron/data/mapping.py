"""Maps files into memory without holding them open: a run may have thousands of shards.

Python's own `mmap`, and numpy's maps with it, keep a descriptor for each, of which a process often
has no more than 1,024. What is mapped stays mapped after its descriptor is closed.
"""

import ctypes
import mmap
import os
import weakref
from pathlib import Path
from typing import Any

import numpy as np

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int64,
]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_FAILED = ctypes.c_void_p(-1).value


def map_file(path: Path, dtype: Any = np.uint8) -> np.ndarray:
    """The numbers of a file, read-only; mapped until the last array that looks into it is gone."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size == 0:  # which cannot be mapped
            return np.empty(0, dtype)
        address = _libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, file.fileno(), 0)
    if address == _FAILED:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(path))
    return np.asarray(_Mapped(address, size)).view(dtype)


def map_array(path: Path) -> np.ndarray:
    """The array of a .npy file, read-only. Raises ValueError or OSError: there is none."""
    with path.open("rb") as file:
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0}[version]
        shape, is_fortran, dtype = read(file)
        begin = file.tell()
    values = map_file(path)[begin:]
    if is_fortran or dtype.hasobject or values.nbytes != int(np.prod(shape)) * dtype.itemsize:
        raise ValueError(f"{path}: not the array that its header says")
    return np.frombuffer(values, dtype).reshape(shape)


class _Mapped:
    """A file in memory, as numpy takes it; arrays that look into it keep it."""

    def __init__(self, address: int, size: int):
        self.__array_interface__ = {
            "data": (address, True),
            "shape": (size,),
            "typestr": "|u1",
            "version": 3,
        }
        weakref.finalize(self, _libc.munmap, address, size)
