"""How much memory the process takes, and what becomes of what tensors give back."""

import ctypes
import platform
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
    if mallopt := getattr(libc, "mallopt", None):
        mallopt(M_TRIM_THRESHOLD, KEPT)
        mallopt(M_MMAP_THRESHOLD, LARGEST)


def peak_memory() -> int:
    """This process' highest resident memory so far, in bytes."""
    if platform.system() == "Windows":
        import psutil

        return psutil.Process().memory_info().peak_wset
    import resource

    # Linux counts kilobytes, macOS bytes.
    unit = 1 if platform.system() == "Darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
