"""What becomes of the memory that tensors give back."""

import ctypes
import sys

# glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEPT, LARGEST = 1 << 30, 32 << 20


def keep_freed_memory() -> None:
    """Have the process keep up to 1 GiB that is freed, in blocks of up to 32 MiB, for what is next.

    glibc would give it back and ask for it again several times a layer; every page of it then
    costs a fault. Systems with another C library are left as they are.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    mallopt = getattr(libc, "mallopt", None)
    if mallopt is not None:
        mallopt(M_TRIM_THRESHOLD, KEPT)
        mallopt(M_MMAP_THRESHOLD, LARGEST)
