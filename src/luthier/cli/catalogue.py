"""The methods grouped by the data that they need, with their cost relative to a baseline and their evidence."""

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

BASELINES = ("sft", "flow")
"""The methods that costs are relative to: the standard loss of language models, or that of diffusion models."""
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
    """A method in the list. `cost` is its training time over that of the baseline; empty if it was not measured."""

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
    """A key of GROUPS, by the method's parts and steps."""
    entries = parts_of(method)
    needs: set[str] = set()
    for entry in entries:
        if entry.slot == "objective":
            modality = entry.constants.get("MODALITY", "language")
            if modality in GROUPS:  # only language models have several groups
                return modality
            needs.update(needs_of(entry))
    verbs = {step.get("do") for step in _steps(method)}
    if needs & {"pairs", "labels"}:
        return "pairs" if "pairs" in needs else "labels"
    if "rl" in method.method.data or verbs & {"rl", "generate"}:
        return "reward"
    chooses = "select" in verbs or any(entry.slot == "selector" for entry in entries)
    return "choice" if chooses else "answers"


def _needs(method: Method, group: str) -> str:
    """The columns that a method reads, and whether it needs a reference model."""
    needs = [GROUPS[group][1]]
    reads_gold = any(map(_reads_the_data, _steps(method)))
    reads_samples = reads_reference = False
    for entry in parts_of(method):
        reads = entry.constants.get("READS", ()) if entry.slot == "objective" else ()
        reads_samples |= "optimality" in reads
        reads_reference |= any(read.endswith(":initial") for read in reads)
        reads_reference |= entry.slot == "selector" and "reference" in entry.options
        reads_gold |= entry.slot == "strategy" and "demonstrations" in needs_of(entry)
    if group == "reward" and reads_gold:
        needs.append("answer")
    if reads_samples:
        needs.append("reward")
    if reads_reference:
        needs.append("reference")
    return ", ".join(needs)


def _reads_the_data(step: Mapping[str, Any]) -> bool:
    """Whether a step trains on the recipe's own answers, or chooses among them."""
    source = step.get("data", "data" if step.get("do") == "train" else None)
    return "data" in source if isinstance(source, list) else source == "data"


def _steps(method: Method) -> list[Mapping[str, Any]]:
    """The blocks of all steps of a method; the steps of a loop follow the loop."""
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
    for node in ast.parse(entry.path.read_text(encoding="utf-8")).body:
        for base in node.bases if isinstance(node, ast.ClassDef) else ():
            if isinstance(base, ast.Name) and base.id in declared:
                return declared[base.id]
    return ()


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
    """Training time over that of the baseline in the same proof, such as `1.33×`; empty if it was not measured."""
    costs = (proof.result or {}).get("costs", {})
    baseline = next((method for method in BASELINES if method in costs), None)
    if baseline is None or name == baseline or name not in costs:
        return ""
    own, other = costs[name].get("train_seconds"), costs[baseline].get("train_seconds")
    return f"{own / other:.2f}×" if own and other else ""


def evidence(proof: Committed) -> str:
    """The verdict of a method's proof and how many of its claims hold."""
    claims = (proof.result or {}).get("claims", {})
    holding = sum(claim["verdict"]["outcome"] == "holds" for claim in claims.values())
    return f"{proof.mark} ({holding} of {len(claims)})" if claims else proof.mark
