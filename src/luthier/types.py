"""The types that all packages share, and the legend of shape letters. Nothing here imports torch.

Shapes: B lines of a batch, T positions of a line, N target positions, R rows (examples) in a batch,
V vocabulary, D width of the hidden state, S seeds.

Well-known streams: `weights` (token, float; a target is a position whose weight is not 0 and that
has a position of the same row before it), `logprobs:<reference>` (token, float), `preferred` (row, float; 1 of a
pair's chosen row and of an answer labelled true, 0 of a rejected one and of one labelled false). Of rollouts:
`advantages`, `old_logprobs`, `rewards`, `values`, `returns`, `forced` (token, float; forced is 1 where
the token was given, not sampled).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    import numpy
    from torch import Tensor

Axis = Literal["row", "token"]
Shape = str
"""`messages`, `prompt_completion`, `text`, or the name of a file in `data/forms/`: records of several answers."""

EVERY = "*"
"""In place of a column's name: all columns of a record, for a reader that does not say which of them it reads."""


@dataclass(frozen=True, slots=True)  # a data set has hundreds of thousands
class Record:
    """One line of the user's data, before tokenisation. No transform changes `id`.

    `fields` by shape — messages: `messages` (list of {role, content}); prompt_completion: `prompt`,
    `completion` (both str, or both lists of messages); text: `text`; preference: `prompt` (str, messages or None),
    `chosen`, `rejected`. Beside one answer, `label` (true or false) may say whether it is a good one. Messages are in
    the form of `records/messages.py`. Further columns stay in `fields` under their names. `group`: an id that records
    share which are not independent of each other (`data/groups.py`): that of one of them; empty where they were not
    compared.
    """

    id: str
    shape: Shape
    fields: Mapping[str, Any]
    origin: str  # "data.jsonl:12", for messages
    group: str = ""
    notes: tuple[str, ...] = field(default=(), compare=False)  # what reading changed, to be counted


@dataclass(frozen=True, slots=True)
class Stream:
    """Values that travel with a row or a batch, and all that moving them needs: axis and pad value."""

    values: Any  # Row: numpy [T] (token), or a scalar or array of any shape (row); Batch: Tensor [B,T] or [R,...]
    axis: Axis
    pad: float = 0.0


@dataclass(frozen=True, slots=True)
class Row:
    """One record as numbers, or one of the rows that a record needs. `streams["weights"]` marks a text's targets.

    A record of another modality has no tokens: its `ids` are empty and its tensors are row streams.
    Rows of one `record` (a preference pair) are never separated: they are drawn, counted and cut to length
    together, and share one forward. The first `shared` positions repeat the previous row's prompt and are not
    computed again.
    """

    id: str  # differs for every row
    ids: numpy.ndarray  # int32 [T]
    streams: Mapping[str, Stream]
    record: str = ""  # the id that all rows of one record share; its own `id` where it is the only one
    shared: int = 0

    def __post_init__(self) -> None:
        if not self.record:
            object.__setattr__(self, "record", self.id)

    def silent(self, name: str) -> bool:
        """Whether the row has this stream, and it is 0 everywhere."""
        return name in self.streams and not self.streams[name].values.any()

    def __len__(self) -> int:
        """Positions that it takes in a forward pass; a record without tokens takes one."""
        return len(self.ids) or 1

    @property
    def targets(self) -> int:
        """Number of target positions (the first position of a row is never predicted)."""
        return int((self.streams["weights"].values[1:] != 0).sum())


@dataclass(frozen=True)
class Batch:
    """Rows ready for one forward pass.

    Four layouts: *right-padded* (no mask: a causal model never looks right, so padding cannot be seen),
    *left-padded* (2-D `attention_mask`), *packed* (positions restart within a row, no mask: together with
    restarting positions a 2-D mask would let rows see each other, silently), *shared* (a prompt, then the
    answers of several rows to it; `prompts` marks what all rows of a line see, and the model is given a 4-D
    mask). `example_of [B,T]` indexes `examples` (-1: padding; a shared prompt belongs to its line's first row)
    and `position_of [B,T]` counts within the row, so sums by row are the same whatever the layout.
    """

    ids: Tensor  # int64 [B,T]
    position_of: Tensor  # int64 [B,T]
    example_of: Tensor  # int64 [B,T]
    examples: tuple[str, ...]  # R ids, one of each row
    records: tuple[str, ...]  # R ids: rows with the same one belong together
    streams: Mapping[str, Stream]
    attention_mask: Tensor | None = None  # int64 [B,T]; left padding only
    prompts: Tensor | None = None  # bool [B,T]; shared prompts only

    @property
    def weights(self) -> Tensor:
        """Token weights [B,T]."""
        return self.streams["weights"].values

    def targets(self) -> tuple[Tensor, Tensor]:
        """Row and column indices, both [N], of the positions to predict."""
        return self._targets

    @cached_property
    def _targets(self) -> tuple[Tensor, Tensor]:
        rows, columns = ((self.weights != 0) & (self.position_of > 0)).nonzero(as_tuple=True)
        return rows, columns

    def before_targets(self) -> tuple[Tensor, Tensor]:
        """Row and column indices, both [N], of the positions that the targets are predicted from."""
        rows, columns = self.targets()
        before = columns - 1
        if self.prompts is None:
            return rows, before
        follows = self.example_of[rows, before] == self.example_of[rows, columns]
        return rows, before.where(follows, self.prompts.sum(1)[rows] - 1)

    def at_targets(self, name: str) -> Tensor:
        """A token stream at the target positions, [N]."""
        return self.streams[name].values[self.targets()]

    def to(self, device: Any) -> Batch:
        """The batch on a device.

        Its targets are found before the move: `nonzero` on a GPU would wait for all work before it.
        """
        streams = {k: replace(s, values=s.values.to(device)) for k, s in self.streams.items()}
        mask = None if self.attention_mask is None else self.attention_mask.to(device)
        moved = replace(
            self,
            ids=self.ids.to(device),
            position_of=self.position_of.to(device),
            example_of=self.example_of.to(device),
            streams=streams,
            attention_mask=mask,
            prompts=None if self.prompts is None else self.prompts.to(device),
        )
        if "weights" in streams:
            rows, columns = self.targets()
            vars(moved)["_targets"] = rows.to(device), columns.to(device)
        return moved


@dataclass(frozen=True)
class Term:
    """One summand of an update's loss: `coefficient * total / counts[unit]`, the counts being global.

    `unit` None: `total` is already divided (several objectives that shared one pass of the head).
    """

    total: Tensor  # scalar, differentiable
    unit: str | None
    coefficient: float = 1.0


@dataclass(frozen=True)
class Sampling:
    """How continuations are drawn. `temperature` 0 takes the likeliest token; `stop` strings end a continuation."""

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    min_p: float = 0.0
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Request:
    """One continuation wanted: of `prompt_ids`, and of `forced_ids` behind it, which are given and not sampled.

    Requests of one `group` share a prompt, which a sampler computes once. `train_forced` says whether the
    forced tokens are targets of training. `seed` alone decides the draws.
    """

    prompt_ids: Sequence[int]
    record: str
    forced_ids: Sequence[int] = ()
    train_forced: bool = False
    group: str = ""
    seed: int = 0
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Trajectory:
    """One continuation of one prompt.

    Attributes:
        ids: tokens after the prompt, forced ones included, the end-of-turn token included.
        finish: "stop" (end of turn or a stop string), "length" (budget of tokens used up), "error".
        logprobs: log-probability of each id under the policy that sampled, at the sampling temperature; 0 for
            forced ids; empty where the sampler reports none.
        request: the request that it answers.
    """

    ids: list[int]
    finish: Literal["stop", "length", "error"]
    record: str
    logprobs: Sequence[float] = ()
    request: Request | None = None


class Sampler(Protocol):
    """Continues requests. Results come in the order of the requests."""

    def __call__(
        self, requests: Sequence[Request], sampling: Sampling, progress: Callable[[int], None] | None = None
    ) -> list[Trajectory]: ...


@dataclass(frozen=True)
class Scored:
    """A trajectory and its reward: None where no reward applies, the parts by name, and the weights of their sum."""

    trajectory: Trajectory
    reward: float | None
    parts: Mapping[str, float] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Candidate:
    """An answer to a record that could be trained on.

    Attributes:
        record: the record with its prompt and its gold answer.
        row: prompt and this answer as tokens; its id is unique among candidates.
        answer: its text.
        source: "data" for the gold answer, else the step that generated it.
        reward: the judge's value; None where there is none.
    """

    record: Record
    row: Row
    answer: str
    source: str
    reward: float | None = None
