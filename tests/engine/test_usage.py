"""The measurement sees what is allocated."""

import torch

from luthier.engine import usage


def test_peak_sees_an_allocation():
    usage.reset_peak()
    before = usage.peak()
    block = torch.ones(40 * 2**18)  # 40 MiB
    assert usage.peak() - before > 30 * 2**20 and block[0] == 1
    assert usage.resident() <= usage.peak()
