"""What the C library keeps of freed memory."""

import os
import platform
import subprocess
import sys

import pytest

from luthier.engine import allocator

FAULTS = """
import resource, sys, torch
from luthier.engine import allocator, usage
if sys.argv[1] == "kept":
    allocator.tune_allocator()
for _ in range(3):
    torch.ones(48 * 2**18)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    torch.ones(48 * 2**18)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
blocks = [torch.ones(40 * 2**18) for _ in range(5)]
del blocks
held = usage.resident()
usage.reset_peak()
print(held - usage.resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_what_is_freed_is_kept_for_the_next_tensor_and_given_back_before_measuring():
    def told(how, **variables):
        kept = {name: value for name, value in os.environ.items() if name not in allocator.SETTINGS}
        command = [sys.executable, "-c", FAULTS, how]
        out = subprocess.run(command, env={**kept, **variables}, capture_output=True, text=True, check=True).stdout
        return [int(line) for line in out.split()]

    pages = 48 * 2**20 // 4096
    plain, kept = told("plain"), told("kept")
    assert plain[0] > 10 * pages and kept[0] < plain[0] / 3  # the system may take idle pages away
    assert plain[1] < 20 * 2**20 and kept[1] > 100 * 2**20
    assert told("kept", MALLOC_TRIM_THRESHOLD_="100000")[0] > 10 * pages  # the user's own settings stay
