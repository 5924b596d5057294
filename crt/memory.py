"""How this process keeps its memory: for the stages and the command `crt`, which own their process."""

import ctypes
import os
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt (malloc.h)


def keep_freed_memory() -> None:
    """Let glibc keep freed blocks of less than 1 GiB for the next step or batch.

    Otherwise they go back to the system, and getting them again costs a page fault for every 4 KiB: 5,000 to
    20,000 in a training step of 64 images of 32 pixels, 200,000 in a forward pass of 1,000. Settings of the
    user's own (MALLOC_*_ in the environment) win; other C libraries have no such switch and stay as they are.
    """
    if (
        sys.platform != "linux"
        or "MALLOC_TRIM_THRESHOLD_" in os.environ
        or "MALLOC_MMAP_THRESHOLD_" in os.environ
    ):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, 1 << 30)
        mallopt(M_TRIM_THRESHOLD, -1)  # never
