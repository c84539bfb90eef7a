"""`luthier methods`: the catalogue, read from the files; nothing heavy is imported."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from luthier.errors import RecipeError, nearest

if TYPE_CHECKING:
    from luthier.parts import Entry
    from luthier.recipe import Method

PLAIN = ("sft", "flow")
"""What costs are told against: the plain loss of language models, or that of denoisers."""


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
    from luthier.proofs.results import committed
    from luthier.recipe import list_methods
    from luthier.recipe.settings import slots

    found = [(method.name, committed(method.name).mark, method.about) for method in list_methods(Path.cwd())]
    width = max((len(mark) for _, mark, _ in found), default=0)
    typer.echo("methods (luthier compare RECIPE --methods sft,dft; `+` composes; `methods NAME` tells more)")
    _table([(name, f"{mark:{width}}  {about}") for name, mark, about in found])
    for slot in slots():
        typer.echo(f"\n{slot}")
        _table([(entry.name, entry.about) for entry in parts.catalogue(slot)])


def _table(rows: list[tuple[str, str]]) -> None:
    width = max((len(left) for left, _ in rows), default=0)
    for left, right in rows:
        typer.echo(f"  {left:{width}}  {right}".rstrip())


def _show(name: str) -> None:
    from luthier import parts
    from luthier.recipe import list_methods
    from luthier.recipe.methods import slot_of_file
    from luthier.recipe.settings import slots

    if name.endswith(".py"):
        path = Path(name)
        if not path.is_file():
            raise RecipeError(f"There is no part file {name}.")
        show_part(parts.read_entry(slot_of_file(path), path.resolve()))
        return
    methods = [method for method in list_methods(Path.cwd()) if method.name == name]
    entries = [entry for slot in slots() for entry in parts.catalogue(slot) if entry.name == name]
    if not methods and not entries:
        raise _unknown(name)
    for method in methods:
        _show_method(method)
        entries = [entry for entry in _parts_of(method) if entry not in entries] + entries
    for index, entry in enumerate(entries):
        if methods or index:
            typer.echo("")
        show_part(entry)


def _unknown(name: str) -> RecipeError:
    from luthier import parts
    from luthier.recipe import list_methods
    from luthier.recipe.settings import slots

    known = {method.name for method in list_methods(Path.cwd())}
    known |= {entry.name for slot in slots() for entry in parts.catalogue(slot)}
    close = nearest(name, known)
    hint = f"Did you mean `{close}`?" if close else "`luthier methods` lists all."
    return RecipeError(f"There is no method or part called `{name}`.", hint)


def _show_method(method: Method) -> None:
    from luthier.proofs.results import committed
    from luthier.recipe import list_methods

    proof = committed(method.name)
    others = [other for other in list_methods(Path.cwd()) if other.name != method.name]
    typer.echo(f"{method.name}: {method.about}")
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
    """The methods that share no key with this one and train the same kind of policy, in one line."""
    names = ", ".join(other.name for other in others if _why_not(method, other) is None)
    return [f"{names} (no key in common; `luthier check` tells whether a recipe carries both)"] if names else []


def _excluded(method: Method, others: list[Method]) -> list[str]:
    """The methods that cannot be composed with this one, by the reason."""
    reasons: dict[str, list[str]] = {}
    for other in others:
        if (reason := _why_not(method, other)) is not None:
            reasons.setdefault(reason, []).append(other.name)
    return [f"{', '.join(names)} ({reason})" for reason, names in reasons.items()]


def _why_not(method: Method, other: Method) -> str | None:
    from luthier.recipe.methods import shared_key

    if (key := shared_key(method, other)) is not None:
        return f"both write {key}"
    mine, theirs = _trains(_parts_of(method)), _trains(_parts_of(other))
    if mine and theirs and mine != theirs:
        return f"of {theirs} policies; this one is of {mine} policies"
    return None


def _trains(entries: list[Entry]) -> str | None:
    """The kind of policy that a method's objective or selector is given; None where it has neither."""
    faces = [e.constants.get("MODALITY", "language") for e in entries if e.slot in ("objective", "selector")]
    return faces[0] if faces else None


def _cost(name: str, result: Mapping[str, Any] | None) -> list[str]:
    """Time and memory of training against the plain method in the method's own proof, where that has both."""
    costs = (result or {}).get("costs", {})
    plain = next((one for one in PLAIN if one in costs), name)
    if result is None or name == plain or name not in costs:
        return []
    found = []
    for key, word in (("train_seconds", "time"), ("peak_memory_bytes", "memory")):
        if costs[name].get(key) and costs[plain].get(key):
            found.append(f"{word} {costs[name][key] / costs[plain][key]:.2f}")
    where = result["hardware"].get("gpu") or result["hardware"].get("cpu") or "unknown hardware"
    return [f"{', '.join(found)} times that of {plain} (its proof, {where})"] if found else []


def _claims(result: Mapping[str, Any] | None) -> list[str]:
    from luthier.proofs.results import seen

    claims = (result or {}).get("claims", {})
    return [f"{claim['verdict']['outcome']}: {claim['text']}; seen: {seen(claim)}" for claim in claims.values()]


def _lines(data: dict[str, Any]) -> list[str]:
    from luthier.recipe.merge import leaves

    return [f"{'.'.join(key)} = {plain(value)}" for key, value in leaves(data)]


def _parts_of(method: Method) -> list[Entry]:
    from luthier import parts
    from luthier.recipe.settings import part_specs

    specs = [(slot, spec) for _, slot, spec in part_specs(method.method.data) if "kind" in spec]
    return [parts.find(slot, spec["kind"], method.path.parent) for slot, spec in specs]


def show_part(entry: Entry) -> None:
    """Print the catalogue's entry of one part: paper, needs, options with their defaults, file."""
    from luthier import parts

    made = parts.load(entry.slot, str(entry.path))
    options = made.model_fields
    constants = {
        key: getattr(made, key, None) for key in parts.constants_of(entry.slot) if key != "SETTINGS"
    }  # its family's too
    facts = [(key.lower(), plain(value)) for key, value in constants.items() if value]
    typer.echo(f"{entry.slot} {entry.name}: {entry.about}")
    _table(
        [
            *facts,
            *(("option", _option(name, field)) for name, field in options.items()),
            ("file", str(entry.path)),
        ]
    )


def _option(name: str, field: Any) -> str:
    kind = getattr(field.annotation, "__name__", None) if isinstance(field.annotation, type) else str(field.annotation)
    shown = f"{name}: {str(kind).replace('typing.', '')}"
    if not field.is_required():
        shown += f" = {plain(field.get_default(call_default_factory=True))}"
    return shown if not field.description else f"{shown}   {field.description}"


def plain(value: Any) -> str:
    """A value as a recipe would write it."""
    import json

    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
        return ", ".join(value)
    return json.dumps(value, ensure_ascii=False, default=str)
