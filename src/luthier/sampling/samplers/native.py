"""Native: the step's own model, in this process."""

from __future__ import annotations

from typing import ClassVar

from luthier.parts import lazy
from luthier.sampling.samplers.base import Asking, SamplerPart
from luthier.types import Sampler

native = lazy("luthier.sampling.native")


class Native(SamplerPart):
    """The step's own model answers, in this process."""

    OWN: ClassVar[bool] = True

    def make(self, asking: Asking) -> Sampler:
        return native.NativeSampler(asking.module, asking.end_ids, asking.tokenizer, asking.rows)
