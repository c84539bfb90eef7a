"""The states that parts keep over the updates of a training, by the part's name."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from luthier.parts import Part
from luthier.update import PartNames


class PartStates:
    """The mutable state of every part that has one, created by its `start`.

    Args:
        names: parts by name, in the order in which older checkpoints number them.
        policy: argument of `start`.
    """

    def __init__(self, names: PartNames, policy: Any):
        self._names = names
        self.by_name: dict[str, Any] = {name: part.start(policy) for name, part in names}  # pyright: ignore

    def of(self, part: Part) -> Any:
        """The state of a part, None where it has none."""
        return self.by_name[self._names.of(part)]

    def tensors(self) -> dict[str, Tensor]:
        """All states as `state/<slot>/<kind>/<position>/<tensor>`."""
        tensors = {}
        for name, state in self.by_name.items():
            if state is not None:
                tensors |= {f"state/{name}/{key}": tensor for key, tensor in state.state_dict().items()}
        return tensors

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Restore what `tensors` returned, or an older checkpoint, which numbers all parts consecutively."""
        for number, (name, state) in enumerate(self.by_name.items()):
            if state is not None:
                own = under(f"state/{name}/", tensors) or under(f"state/{number}/", tensors)
                state.load_state_dict(own)


def under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names start with a prefix, by the rest of their names."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
