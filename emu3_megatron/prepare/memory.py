"""Gives memory back to the system as soon as pictures and tensors are freed."""

import ctypes

_M_MMAP_THRESHOLD = -3  # of glibc's malloc.h
_BYTES = 1 << 20


def return_freed_memory() -> None:
    """Let every block of a megabyte or more be its own mapping, which leaves when it is freed.

    glibc begins with 128 kB and raises the limit to 32 MB with the blocks that are freed; from
    then on smaller ones, such as frames and activations, stay in a heap that grows with its
    gaps. Other C libraries have no such limit and are left as they are.
    """
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(_M_MMAP_THRESHOLD, _BYTES)
