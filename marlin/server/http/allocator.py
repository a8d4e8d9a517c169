"""What the C library's allocator keeps of freed memory.

glibc's keeps a good part of it for the thread that freed it, which may never ask again: of 16 large
requests nearly all. Where there is no glibc, nothing here has an effect or is needed.
"""

import ctypes

# mallopt's parameters (malloc.h).
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
# A larger piece is a mapping of its own, which is gone when it is freed; above the logits of most
# vocabularies, which each step allocates. And at most so much stays free at the end of a heap.
_KEPT_BYTES = 1024 * 1024


def keep_little() -> None:
    """Bound what is kept, from now on. glibc would raise both bounds up to 64 MiB by itself."""
    mallopt = getattr(ctypes.pythonapi, "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)


def trim() -> None:
    """Give back what is free within the heaps now; some milliseconds."""
    malloc_trim = getattr(ctypes.pythonapi, "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)
