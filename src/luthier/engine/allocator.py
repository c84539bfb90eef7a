"""Allocation in this process: how much freed memory glibc keeps, and how many kernels oneDNN keeps."""

from __future__ import annotations

import ctypes
import os

KEPT_BYTES = 512 * 2**20
MMAP_THRESHOLD, TRIM_THRESHOLD, LARGEST_FAST = -3, -1, 1  # of mallopt, <malloc.h>
SETTINGS = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")
PRODUCTS = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64", "LRU_CACHE_CAPACITY": "64"}  # oneDNN's own and torch's above it


def tune_allocator() -> None:
    """Let glibc keep up to KEPT_BYTES of freed memory for the next tensors, and oneDNN few kernels.

    Call once per process, before its first matrix product. Settings of the user are not changed.

    By default glibc returns blocks of 32 MiB and more to the system at once, and the system clears every page of the
    next block: for a chunk of logits this takes longer than their exponential. oneDNN compiles 0.65 MiB of code for
    every shape of a bfloat16 product and keeps the last 1024: a micro-batch has about thirty, which seldom return.
    """
    for name, capacity in PRODUCTS.items():
        os.environ.setdefault(name, capacity)
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt") and not any(name in os.environ for name in SETTINGS):
        library.mallopt(MMAP_THRESHOLD, 2**30)
        library.mallopt(TRIM_THRESHOLD, KEPT_BYTES)
        # Scraps from aligning a tensor join their neighbours at once. Kept in lists of small blocks they would leave
        # every hole a little too small for the next tensor.
        library.mallopt(LARGEST_FAST, 0)
