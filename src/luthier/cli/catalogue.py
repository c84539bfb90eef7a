"""The methods by what the user has: what each needs, what it costs beside the plain method, what was shown of it."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from luthier.parts import Entry
    from luthier.proofs.results import Committed
    from luthier.recipe import Method

PLAIN = ("sft", "flow")
"""What costs are told against: the plain loss of language models, or that of denoisers."""
GROUPS: Mapping[str, tuple[str, str]] = {
    "answers": ("You have prompts with their answers", "prompt, answer"),
    "pairs": ("You have pairs of a chosen and a rejected answer", "prompt, chosen, rejected"),
    "labels": ("You have answers that are each labelled good or bad", "prompt, answer, label"),
    "reward": ("You have prompts whose answers can be checked, or a reward", "prompt, reward"),
    "choice": ("You have more records than you want to train on", "prompt, answer"),
    "diffusion": ("You have a denoiser and cached latents", "latent, conditions"),
    "contrastive": ("You have encoders and pairs of images and texts", "image, text"),
}
"""What the user has → the heading of the group, and the columns of a record that its methods read."""


@dataclass(frozen=True)
class Line:
    """A method in the list: `cost` is its training time over that of the plain method, or nothing if not measured."""

    name: str
    needs: str
    cost: str
    evidence: str
    about: str


def grouped(folder: Path) -> dict[str, list[Line]]:
    """Heading → lines of its methods, those of the package and those in `folder`; empty groups are left out."""
    from luthier.proofs.results import committed
    from luthier.recipe import list_methods

    groups: dict[str, list[Line]] = {name: [] for name in GROUPS}
    for method in list_methods(folder):
        group, proof = group_of(method), committed(method.name)
        groups[group].append(
            Line(method.name, _needs(method, group), cost_in_proof(method.name, proof), evidence(proof), method.about)
        )
    return {GROUPS[name][0]: lines for name, lines in groups.items() if lines}


def parts_of(method: Method) -> list[Entry]:
    """The catalogue's entries of the parts that a method sets, those of its steps included."""
    from luthier import parts
    from luthier.recipe.settings import expand, part_specs

    steps = [{key: block for key, block in step.items() if isinstance(block, Mapping)} for step in _steps(method)]
    blocks = [method.method.data, *map(expand, steps)]
    specs = [(slot, spec) for block in blocks for _, slot, spec in part_specs(block) if "kind" in spec]
    return [parts.find(slot, spec["kind"], method.path.parent) for slot, spec in specs]


def group_of(method: Method) -> str:
    """A key of GROUPS, told by the method's parts and steps."""
    entries = parts_of(method)
    faces = {entry.constants.get("MODALITY", "language") for entry in entries if entry.slot == "objective"} & set(
        GROUPS
    )
    needs = {need for entry in entries if entry.slot == "objective" for need in needs_of(entry)}
    verbs = {step.get("do") for step in _steps(method)}
    if faces:
        return faces.pop()
    if needs & {"pairs", "labels"}:
        return "pairs" if "pairs" in needs else "labels"
    if "rl" in method.method.data or verbs & {"rl", "generate"}:
        return "reward"
    chooses = "select" in verbs or any(entry.slot == "selector" for entry in entries)
    return "choice" if chooses else "answers"


def _needs(method: Method, group: str) -> str:
    """The columns that a method reads, and what it keeps in memory beside the model."""
    entries, steps = parts_of(method), _steps(method)
    reads = {read for entry in entries if entry.slot == "objective" for read in entry.constants.get("READS", ())}
    needs = [GROUPS[group][1]]
    gold = any("demonstrations" in needs_of(entry) for entry in entries if entry.slot == "strategy")
    if group == "reward" and (gold or any(map(_reads_the_data, steps))):
        needs.append("answer")
    if "optimality" in reads:
        needs.append("reward")
    asked = any("reference" in entry.options for entry in entries if entry.slot == "selector")
    if asked or any(read.endswith(":initial") for read in reads):
        needs.append("reference")
    return ", ".join(needs)


def _reads_the_data(step: Mapping[str, Any]) -> bool:
    """Whether a step trains on the recipe's own answers, or chooses among them."""
    source = step.get("data", "data" if step.get("do") == "train" else None)
    return "data" in source if isinstance(source, list) else source == "data"


def _steps(method: Method) -> list[Mapping[str, Any]]:
    """The blocks of all steps of a method, those of loops behind their loop."""
    return list(_steps_in(method.method.data))


def _steps_in(block: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for step in (block.get("steps") or {}).values():
        if isinstance(step, Mapping):
            yield step
            yield from _steps_in(step)


def needs_of(entry: Entry) -> tuple[str, ...]:
    """NEEDS of a part, its own or that of its base class, read from the files."""
    if "NEEDS" in entry.constants:
        return tuple(entry.constants["NEEDS"])
    declared = _declared_needs(entry.path.parent / "base.py")
    tree = ast.parse(entry.path.read_text(encoding="utf-8"))
    bases = [base for node in tree.body if isinstance(node, ast.ClassDef) for base in node.bases]
    names = [base.id for base in bases if isinstance(base, ast.Name)]
    return next((declared[name] for name in names if name in declared), ())


@cache
def _declared_needs(path: Path) -> dict[str, tuple[str, ...]]:
    """Class → NEEDS of the base classes in a file."""
    if not path.is_file():
        return {}
    declared: dict[str, tuple[str, ...]] = {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if not isinstance(node, ast.ClassDef):
            continue
        for line in node.body:
            if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and line.target.id == "NEEDS":
                declared[node.name] = ast.literal_eval(line.value) if line.value is not None else ()
    return declared


def cost_in_proof(name: str, proof: Committed) -> str:
    """Training time over that of the plain method in the same proof, such as `1.33×`; nothing if not measured."""
    costs = (proof.result or {}).get("costs", {})
    plain = next((method for method in PLAIN if method in costs), None)
    if plain is None or name == plain or name not in costs:
        return ""
    own, other = (costs[method].get("train_seconds") for method in (name, plain))
    return f"{own / other:.2f}×" if own and other else ""


def evidence(proof: Committed) -> str:
    """The verdict of a method's proof and how many of its claims hold."""
    claims = (proof.result or {}).get("claims", {})
    holding = sum(claim["verdict"]["outcome"] == "holds" for claim in claims.values())
    return f"{proof.mark} ({holding} of {len(claims)})" if claims else proof.mark
