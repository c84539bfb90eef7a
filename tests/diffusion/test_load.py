"""Schedulers of diffusers: our levels are theirs, with a fixed and with a dynamic shift."""

import numpy
import pytest

from luthier.diffusion.levels import solver_levels
from luthier.diffusion.load import shift_of

diffusers = pytest.importorskip("diffusers")


def theirs(scheduler, steps, **more):
    scheduler.set_timesteps(sigmas=numpy.linspace(1.0, 1 / steps, steps), **more)
    return scheduler.sigmas.tolist()


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_levels_of_a_fixed_shift(shift):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    assert shift_of(scheduler.config, (4, 8, 8)) == shift
    assert solver_levels(6, shift) == pytest.approx(theirs(scheduler, 6), abs=1e-6)


@pytest.mark.parametrize("side", [16, 64, 128])
def test_levels_of_a_dynamic_shift(side):
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    mu = calculate_shift(side * side // 4)
    shift = shift_of(scheduler.config, (16, side, side))
    assert shift == pytest.approx(numpy.exp(mu))
    assert solver_levels(5, shift) == pytest.approx(theirs(scheduler, 5, mu=mu), abs=1e-6)
