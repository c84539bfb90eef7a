"""The grammar of `steps:`, a pipeline: an ordered mapping from names to blocks with `do:`.

A step sees the recipe with its own blocks laid over it. `from` names the model it starts from (`base`, `newest`
or an earlier step; default: the newest), `data` the records it works on (`data` are the recipe's, `chunk` a loop
round's share of them, else an earlier step that makes records). A training step with a `model` of its own trains
that aside, for the losses that its `probe` sees.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from luthier.errors import nearest

BASE, NEWEST, DATA, CHUNK = "base", "newest", "data", "chunk"
OVERLAYS = ("model", "train", "rl", "generate", "reward")
VERBS: dict[str, tuple[str, ...]] = {
    "train": ("from", "data", "share", "model", "train", "probe"),
    "rl": ("from", "data", "share", "train", "rl", "reward"),
    "generate": ("from", "data", "generate", "reward", "samples", "instruction", "unless"),
    "select": ("from", "data", "subset"),
    "score": ("from", "data", "entropy", "reward"),
    "evaluate": ("from", "generate"),
    "loop": ("data", "share", "rounds", "carry", "steps"),
}
MODELS, RECORDS, TRAINING = ("train", "rl", "loop"), ("generate", "select"), ("train", "rl", "loop")


@dataclass(frozen=True)
class _Scope:
    """Names that a step may refer to."""

    models: tuple[str, ...] = (BASE, NEWEST)
    records: tuple[str, ...] = (DATA,)

    def after(self, name: str, verb: str, aside: bool) -> _Scope:
        """With this step's name; a model that was trained `aside` is no model of the recipe's."""
        return _Scope(
            (*self.models, name) if verb in MODELS and not aside else self.models,
            (*self.records, name) if verb in RECORDS else self.records,
        )


def check_steps(value: Any) -> dict[str, dict[str, Any]] | None:
    """Check a pipeline and write out its defaults: `do`, `from`, `data`, `share` of every step.

    Raises:
        ValueError: in words; the caller knows the place.
    """
    if value is None:
        return None
    found = _checked(value, _Scope())
    if not any(step["do"] in TRAINING for step in found.values()):
        raise ValueError("no step trains: add one that does `train` or `rl`")
    return found


def _checked(value: Any, scope: _Scope) -> dict[str, dict[str, Any]]:
    if not isinstance(value, Mapping) or not value:
        raise ValueError("expected an ordered block of steps, each a name and its block")
    found: dict[str, dict[str, Any]] = {}
    for name, block in value.items():
        if not re.fullmatch(r"[a-z]\w*", str(name)) or name in (BASE, NEWEST, DATA, CHUNK):
            raise ValueError(f"`{name}` cannot name a step: small letters, digits, _; not base, newest, data, chunk")
        found[name] = _step(name, {} if block is None else block, scope)
        scope = scope.after(name, found[name]["do"], "model" in found[name])
    return _with_shares(found)


def _step(name: str, block: Any, scope: _Scope) -> dict[str, Any]:
    if not isinstance(block, Mapping):
        raise ValueError(f"step `{name}` is not a block of keys")
    verb = block.get("do", name)
    if not isinstance(verb, str) or verb not in VERBS:
        close = nearest(str(verb), tuple(VERBS))
        hint = f"did you mean `{close}`" if close else f"give it one of {', '.join(VERBS)} as `do`"
        raise ValueError(f"step `{name}` does `{verb}`, which there is not: {hint}")
    unknown = [key for key in block if key not in (*VERBS[verb], "do")]
    if unknown:
        close = nearest(unknown[0], VERBS[verb])
        hint = f"did you mean `{close}`" if close else f"it has {', '.join(VERBS[verb])}"
        raise ValueError(f"step `{name}` ({verb}) has no key `{unknown[0]}`: {hint}")
    step = {**block, "do": verb}
    if "from" in VERBS[verb]:
        step.setdefault("from", NEWEST)
        _refer(name, "from", step["from"], scope.models)
    if "data" in VERBS[verb]:
        step.setdefault("data", CHUNK if CHUNK in scope.records else DATA)
        for one in step["data"] if isinstance(step["data"], list) else [step["data"]]:
            _refer(name, "data", one, scope.records)
    return _OWN[verb](name, step, scope) if verb in _OWN else step


def _refer(name: str, key: str, target: Any, known: tuple[str, ...]) -> None:
    if target not in known:
        raise ValueError(f"step `{name}`: {key}: {target!r} is not known here; known: {', '.join(known)}")


def _train(name: str, step: dict[str, Any], scope: _Scope) -> dict[str, Any]:
    if "model" in step and (step["from"] not in (BASE, NEWEST) or step["data"] != DATA):
        raise ValueError(f"step `{name}`: a `model` of its own starts from itself, on `data`: leave out from and data")
    probe = step.get("probe")
    if probe is None:
        return step
    every = probe.get("every") if isinstance(probe, Mapping) and set(probe) == {"every"} else None
    if every != "auto" and (type(every) is not int or every < 1):
        raise ValueError(f"step `{name}`: probe: expected `every: auto` or every so many updates, found {probe!r}")
    return step


def _generate(name: str, step: dict[str, Any], scope: _Scope) -> dict[str, Any]:
    step.setdefault("samples", 1)
    if type(step["samples"]) is not int or step["samples"] < 1:
        raise ValueError(f"step `{name}`: samples: expected a whole number above 0, found {step['samples']!r}")
    instruction = step.setdefault("instruction", None)
    if instruction is not None and (not isinstance(instruction, str) or "{prompt}" not in instruction):
        raise ValueError(f"step `{name}`: instruction: expected text with {{prompt}}, and {{answer}} where it is shown")
    unless = step.setdefault("unless", None)
    if unless is not None:
        _refer(name, "unless", unless, scope.records)
    return step


def _select(name: str, step: dict[str, Any], scope: _Scope) -> dict[str, Any]:
    subset = step.get("subset")
    subset = {"kind": subset} if isinstance(subset, str) else subset
    if not isinstance(subset, Mapping) or not isinstance(subset.get("kind"), str):
        raise ValueError(f"step `{name}`: subset: expected the name of a part or a block with `kind`")
    return {**step, "subset": dict(subset)}


def _score(name: str, step: dict[str, Any], scope: _Scope) -> dict[str, Any]:
    if type(step.setdefault("entropy", False)) is not bool:
        raise ValueError(f"step `{name}`: entropy: expected true or false, found {step['entropy']!r}")
    return step


def _loop(name: str, step: dict[str, Any], scope: _Scope) -> dict[str, Any]:
    rounds, carry = step.setdefault("rounds", 2), step.setdefault("carry", False)
    if type(rounds) is not int or rounds < 1:
        raise ValueError(f"step `{name}`: rounds: expected a whole number above 0, found {rounds!r}")
    if type(carry) is not bool:
        raise ValueError(f"step `{name}`: carry: expected true or false, found {carry!r}")
    if "steps" not in step:
        raise ValueError(f"step `{name}`: a loop needs `steps`")
    body = _checked(step["steps"], _Scope(scope.models, (*scope.records, CHUNK)))
    trained = [inner for inner, one in body.items() if one["do"] in TRAINING]
    if len(trained) != 1 or body[trained[0]]["do"] == "loop":
        raise ValueError(f"step `{name}`: the body of a loop trains in exactly one step, found {len(trained)}")
    return {**step, "steps": body}


_OWN = {"train": _train, "generate": _generate, "select": _select, "score": _score, "loop": _loop}


def _with_shares(steps: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Every training step's share of the budget; those without one divide what is left."""
    trained = [name for name, step in steps.items() if step["do"] in TRAINING]
    for name in trained:
        share = steps[name].get("share")
        if share is not None and (type(share) not in (int, float) or not 0 < share <= 1):
            raise ValueError(f"step `{name}`: share: expected a number above 0 and at most 1, found {share!r}")
    given = sum(steps[name].get("share") or 0 for name in trained)
    open_ones = [name for name in trained if steps[name].get("share") is None]
    if given > 1 + 1e-9 or (open_ones and given >= 1):
        raise ValueError(f"the shares of the steps add up to {given:g}, and {len(open_ones)} step(s) have none")
    for name in open_ones:
        steps[name]["share"] = (1 - given) / len(open_ones)
    return steps
