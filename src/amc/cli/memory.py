"""How the process of a command keeps its memory."""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # parameters of mallopt, in <malloc.h> of the GNU C library
_KEPT = 1 << 30  # bytes; free memory beyond this goes back to the system
_LARGEST = 128 << 20  # bytes; larger blocks go back to the system as before


def keep_freed_memory() -> bool:
    """Let the process keep the memory that it frees, and use it again. Returns whether the C library can do that.

    The GNU C library gives every block above 32 MiB back to the system at once. The activations of a batch of images
    are such blocks, and the system clears every page again before it hands it out: a third of a forward pass.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # macOS, musl
        return False
    return bool(mallopt(_TRIM_THRESHOLD, _KEPT)) and bool(mallopt(_MMAP_THRESHOLD, _LARGEST))
