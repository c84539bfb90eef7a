"""How the process allocates: what glibc keeps of freed memory, and how many kernels oneDNN keeps."""

from __future__ import annotations

import ctypes
import os

KEPT_BYTES = 512 * 2**20
MMAP_THRESHOLD, TRIM_THRESHOLD, LARGEST_FAST = -3, -1, 1  # of mallopt, <malloc.h>
SETTINGS = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")
PRODUCTS = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64", "LRU_CACHE_CAPACITY": "64"}  # oneDNN's own and torch's above it


def tune_allocator() -> None:
    """Let the C library keep up to KEPT_BYTES of freed memory for the tensors that come next, and oneDNN few kernels.

    For the whole process, before the first product.

    glibc gives blocks of 32 MiB and more back at once, and the system hands out fresh pages that it clears one by one:
    for a chunk of logits that takes longer than an exponential of them. What is left over where a tensor is aligned
    joins its neighbours at once: kept for small blocks, it would leave every hole a little too small for the next
    tensor. oneDNN writes code for every shape of a product in bfloat16, 0.65 MiB of it, and keeps the last 1024: a
    micro-batch has some thirty, which seldom come again. Settings of the user's are left alone.
    """
    for name, capacity in PRODUCTS.items():
        os.environ.setdefault(name, capacity)
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt") and not any(name in os.environ for name in SETTINGS):
        library.mallopt(MMAP_THRESHOLD, 2**30)
        library.mallopt(TRIM_THRESHOLD, KEPT_BYTES)
        library.mallopt(LARGEST_FAST, 0)
