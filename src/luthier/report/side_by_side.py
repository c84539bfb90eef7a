"""Answers beside each other, with what differs from the reference marked."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from luthier.report.numbers import html_name, html_text

WORDS = re.compile(r"\s+|\w+|[^\w\s]")
LONGEST_DIFF = 600  # words; a longer answer is shown without marks
FENCE = re.compile(r"^```\w*\s*\n(.*)\n```\s*$", re.DOTALL)


def sample_block(sample: Mapping[str, Any], colours: Mapping[str, str]) -> str:
    """One item: prompt, reference and every model's answer. `colours` are CSS values by row label."""
    name = "target item" if sample["set"] == "target" else "retain item"
    outputs = "".join(
        _output(one, sample["reference"], colours.get(one["label"], "var(--base)")) for one in sample["outputs"]
    )
    seen = picture(sample.get("pictures", {}).get("prompt"), sample["prompt"])
    asked = _text("prompt", sample["prompt"], seen) + _text("reference", _pretty(sample["reference"]))
    return (
        f'<div class="card sample"><header><span class="tag">{name}</span>{html_text(sample["id"])}</header>'
        f'<div class="texts">{asked}</div>'
        f'<div class="outputs">{outputs}</div></div>'
    )


def _text(label: str, text: str, seen: str = "") -> str:
    return f'<div><p class="label">{label}</p><div class="box">{seen}<pre>{html_text(text)}</pre></div></div>'


def picture(uri: str | None, words: str) -> str:
    """A picture that the page itself holds, or nothing."""
    if uri is None or not uri.startswith("data:image/png;base64,"):
        return ""
    return f'<img class="picture" src="{html_text(uri)}" alt="{html_text(words)}">'


def is_drawn(sample: Mapping[str, Any]) -> bool:
    """Whether the models answered with pictures."""
    return any(one.get("picture") for one in sample["outputs"])


def gallery(samples: Sequence[Mapping[str, Any]], colours: Mapping[str, str]) -> str:
    """A table of pictures: a column for each record, rows for the record itself and for every model."""
    asked = "".join(f"<th>{html_text(sample['prompt'])}</th>" for sample in samples)
    own = [picture(sample["pictures"].get("reference"), "the record") for sample in samples]
    rows = [f"<tr><td>data</td>{''.join(f'<td>{one}</td>' for one in own)}</tr>"]
    labels = dict.fromkeys(one["label"] for sample in samples for one in sample["outputs"])
    for label in labels:
        found = [next((one for one in sample["outputs"] if one["label"] == label), None) for sample in samples]
        cells = "".join(f"<td>{'' if one is None else _drawn(one)}</td>" for one in found)
        swatch = f'<span class="swatch" style="--colour: {colours.get(label, "var(--base)")}"></span>'
        rows.append(f"<tr><td>{swatch} <b>{html_name(label)}</b></td>{cells}</tr>")
    head = f"<thead><tr><th></th>{asked}</tr></thead>"
    return f'<table class="gallery">{head}<tbody>{"".join(rows)}</tbody></table>'


def _drawn(one: Mapping[str, Any]) -> str:
    return f"{picture(one.get('picture'), one['prediction'])}<small>{one['score']:.2f}</small>"


def _output(one: Mapping[str, Any], reference: str, colour: str) -> str:
    kind = "right" if one["right"] else "partly" if one["score"] > 0 else "wrong"
    mark = {"right": "✓ right", "partly": f"{100 * one['score']:.0f}% of points", "wrong": "✗ wrong"}[kind]
    cut = '<p class="gone">cut off: the limit of new tokens was reached</p>' if one["finish"] == "length" else ""
    return (
        f'<div class="output" style="--colour: {colour}"><p class="label"><span>{html_name(one["label"])}</span>'
        f'<span class="tag {kind}">{mark}</span></p><pre>{marked(one["prediction"], reference)}</pre>{cut}</div>'
    )


def marked(prediction: str, reference: str) -> str:
    """The prediction as HTML; fields of a JSON object, or words, that differ from the reference are marked."""
    if not prediction.strip():
        return '<span class="gone">(empty)</span>'
    found, wanted = _object(prediction), _object(reference)
    if found is not None and wanted is not None:
        return _marked_fields(found, wanted)
    return _marked_words(prediction, reference)


def _object(text: str) -> dict[str, Any] | None:
    fenced = FENCE.match(text.strip())
    try:
        value = json.loads(fenced.group(1) if fenced else text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _pretty(text: str) -> str:
    found = _object(text)
    return text if found is None else "\n".join(_field(key, value) for key, value in found.items())


def _field(key: str, value: Any) -> str:
    return f"{key}: {json.dumps(value, ensure_ascii=False)}"


def _marked_fields(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    lines = []
    for key, value in found.items():
        line = html_text(_field(key, value))
        same = key in wanted and json.dumps(value, sort_keys=True) == json.dumps(wanted[key], sort_keys=True)
        lines.append(line if same else f"<mark>{line}</mark>")
    lines += [f'<span class="gone">{html_text(key)} is missing</span>' for key in wanted if key not in found]
    return "\n".join(lines)


def _marked_words(prediction: str, reference: str) -> str:
    ours, theirs = WORDS.findall(prediction), WORDS.findall(reference)
    if max(len(ours), len(theirs)) > LONGEST_DIFF or not theirs:
        return html_text(prediction)
    matcher = difflib.SequenceMatcher(None, theirs, ours, autojunk=False)
    if matcher.ratio() < 0.3:  # nothing in common: marking all of it would say nothing
        return html_text(prediction)
    return "".join(_piece(kind, ours[start:end]) for kind, _, _, start, end in matcher.get_opcodes())


def _piece(kind: str, words: Sequence[str]) -> str:
    text = html_text("".join(words))
    return text if kind == "equal" or not text.strip() else f"<mark>{text}</mark>"
