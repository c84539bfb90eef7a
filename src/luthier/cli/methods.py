"""`luthier methods`: the catalogue of methods and parts, read from their files without importing torch."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from luthier.errors import RecipeError, nearest
from luthier.terminal import echo

if TYPE_CHECKING:
    from luthier.parts import Entry
    from luthier.recipe import Method


def command(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="A method or a part; default: list all.")] = None,
) -> None:
    """What can be compared, and what it is made of."""
    if name is None:
        _list_all()
    else:
        _show(name)


def _list_all() -> None:
    from luthier import parts
    from luthier.cli.catalogue import grouped
    from luthier.recipe.settings import slots

    groups = grouped(Path.cwd())
    echo("methods (luthier compare RECIPE --methods sft,dft; `+` composes; `methods NAME` shows one)")
    echo("needs: columns of a record, a reward, a reference (the initial model, or one that the recipe names)")
    echo("time: of training, relative to sft (diffusion: flow) in the proof, on a small model; see docs/speed.md")
    echo("proof: its verdict, and how many of the claims that were written before it ran hold")
    widths = [0, 0, 0, 0]  # of all groups together, so that their columns are aligned
    for line in chain.from_iterable(groups.values()):
        cells = (line.name, line.needs, line.cost, line.evidence)
        widths = [max(width, len(cell)) for width, cell in zip(widths, cells, strict=True)]
    for heading, group in groups.items():
        echo(f"\n{heading}")
        for line in group:
            cells = zip((line.name, line.needs, line.cost, line.evidence), widths, strict=True)
            echo(f"  {'  '.join(f'{cell:{width}}' for cell, width in cells)}  {line.about}")
    for slot in slots():
        echo(f"\n{slot}")
        _table([(entry.name, entry.about) for entry in parts.catalogue(slot)])


def _table(rows: list[tuple[str, str]]) -> None:
    width = max((len(left) for left, _ in rows), default=0)
    for left, right in rows:
        echo(f"  {left:{width}}  {right}".rstrip())


def _show(name: str) -> None:
    from luthier import parts
    from luthier.cli.catalogue import all_parts
    from luthier.recipe import list_methods
    from luthier.recipe.methods import slot_of_file

    if name.endswith(".py"):
        path = Path(name)
        if not path.is_file():
            raise RecipeError(f"There is no part file {name}.")
        show_part(parts.read_entry(slot_of_file(path), path.resolve()))
        return
    methods = [method for method in list_methods(Path.cwd()) if method.name == name]
    entries = [entry for entry in all_parts() if entry.name == name]
    if not methods and not entries:
        raise _unknown(name)
    for method in methods:
        _show_method(method)
        entries = [entry for entry in _parts_of(method) if entry not in entries] + entries
    for index, entry in enumerate(entries):
        if methods or index:
            echo("")
        show_part(entry)


def _unknown(name: str) -> RecipeError:
    from luthier.cli.catalogue import all_parts
    from luthier.recipe import list_methods

    known = {method.name for method in list_methods(Path.cwd())} | {entry.name for entry in all_parts()}
    close = nearest(name, known)
    hint = f"Did you mean `{close}`?" if close else "`luthier methods` lists all."
    return RecipeError(f"There is no method or part called `{name}`.", hint)


def _show_method(method: Method) -> None:
    from luthier.proofs.results import committed
    from luthier.recipe import list_methods

    proof = committed(method.name)
    others = [other for other in list_methods(Path.cwd()) if other.name != method.name]
    echo(f"{method.name}: {method.about}")
    _table(
        [
            *(("sets", line) for line in _lines(method.method.data)),
            *(("advises", line) for line in _lines(method.advice.data)),
            *(("may go with", line) for line in _free(method, others)),
            *(("not with", line) for line in _excluded(method, others)),
            *(("cost", line) for line in _cost(method.name, proof.result)),
            ("proof", proof.mark),
            *(("claim", line) for line in _claims(proof.result)),
            ("file", str(method.path)),
        ]
    )


def _free(method: Method, others: list[Method]) -> list[str]:
    """The methods that share no key with this one and train models of the same modality, in one line."""
    names = ", ".join(other.name for other in others if _why_not(method, other) is None)
    return [f"{names} (no key in common; `luthier check` reports whether they fit a recipe)"] if names else []


def _excluded(method: Method, others: list[Method]) -> list[str]:
    """The methods that cannot be composed with this one, by the reason."""
    reasons: dict[str, list[str]] = {}
    for other in others:
        if (reason := _why_not(method, other)) is not None:
            reasons.setdefault(reason, []).append(other.name)
    return [f"{', '.join(names)} ({reason})" for reason, names in reasons.items()]


def _why_not(method: Method, other: Method) -> str | None:
    """Why two methods cannot be composed; None if they can."""
    from luthier.recipe.methods import shared_key

    if (key := shared_key(method, other)) is not None:
        return f"both write {key}"
    mine, theirs = _trains(_parts_of(method)), _trains(_parts_of(other))
    if mine and theirs and mine != theirs:
        return f"of {theirs} policies; this one is of {mine} policies"
    return None


def _trains(entries: list[Entry]) -> str | None:
    """The modality of a method's objective or selector; None if it has neither."""
    for entry in entries:
        if entry.slot in ("objective", "selector"):
            return entry.constants.get("MODALITY", "language")
    return None


def _cost(name: str, result: Mapping[str, Any] | None) -> list[str]:
    """Time and memory of training relative to the baseline method, in one line; none without both in its proof."""
    from luthier.cli.catalogue import BASELINES

    costs = (result or {}).get("costs", {})
    baseline = next((method for method in BASELINES if method in costs), name)
    if result is None or name == baseline or name not in costs:
        return []
    ratios = []
    for key, word in (("train_seconds", "time"), ("peak_memory_bytes", "memory")):
        if costs[name].get(key) and costs[baseline].get(key):
            ratios.append(f"{word} {costs[name][key] / costs[baseline][key]:.2f}")
    hardware = result["hardware"].get("gpu") or result["hardware"].get("cpu") or "unknown hardware"
    return [f"{', '.join(ratios)} times that of {baseline} (its proof, {hardware})"] if ratios else []


def _claims(result: Mapping[str, Any] | None) -> list[str]:
    from luthier.proofs.results import seen

    claims = (result or {}).get("claims", {})
    return [f"{claim['verdict']['outcome']}: {claim['text']}; seen: {seen(claim)}" for claim in claims.values()]


def _lines(data: dict[str, Any]) -> list[str]:
    from luthier.recipe.merge import dotted

    return [f"{key} = {as_written(value)}" for key, value in dotted(data).items()]


def _parts_of(method: Method) -> list[Entry]:
    from luthier import parts
    from luthier.recipe.settings import part_specs

    specs = [(slot, spec) for _, slot, spec in part_specs(method.method.data) if "kind" in spec]
    return [parts.find(slot, spec["kind"], method.path.parent) for slot, spec in specs]


def show_part(entry: Entry) -> None:
    """Print the catalogue's entry of one part: paper, needs, file, options with their defaults and meanings."""
    from luthier import parts

    part_class = parts.load(entry.slot, str(entry.path))
    facts = []
    for name in parts.constants_of(entry.slot):
        constant = getattr(part_class, name, None)  # of the class, because base classes declare constants too
        if constant and name != "SETTINGS":
            facts.append((name.lower(), as_written(constant)))
    echo(f"{entry.slot} {entry.name}: {entry.about}")
    _table([*facts, ("file", str(entry.path))])
    if entry.described:
        echo("  options")
    for line in _option_lines(entry):
        echo(line)


NARROW, WIDE = 72, 120
"""Least and greatest width of a table: a narrower column of meanings is hard to read, and so is a longer line."""


def _option_lines(entry: Entry) -> list[str]:
    """A table of two columns: `name = default`, and the meaning with type and range, wrapped."""
    columns = min(max(shutil.get_terminal_size().columns, NARROW), WIDE)
    lefts = []
    for option in entry.described:
        default = " (required)" if option.default is None else f" = {option.default}"
        lefts.append(f"{option.name}{default}")
    left_width = max((len(left) for left in lefts if len(left) <= columns // 3), default=0)
    lines: list[str] = []
    for left, option in zip(lefts, entry.described, strict=True):
        meaning = f"{option.description} [{option.takes}]".strip()
        wrapped = textwrap.wrap(meaning, columns - left_width - 6)
        if len(left) > left_width:  # a long default has a line of its own
            lines.append(f"    {left}")
            left = ""
        lines.append(f"    {left:{left_width}}  {wrapped[0]}")
        lines += [f"    {'':{left_width}}  {line}" for line in wrapped[1:]]
    return lines


def as_written(setting: Any) -> str:
    """A setting as a recipe would write it."""
    import json

    if isinstance(setting, str):
        return setting
    if isinstance(setting, list | tuple) and all(isinstance(member, str) for member in setting):
        return ", ".join(setting)
    return json.dumps(setting, ensure_ascii=False, default=str)
