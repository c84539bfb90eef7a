"""Answers of all models side by side; words and fields that differ from the reference are marked."""

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
    outputs = ""
    for output in sample["outputs"]:
        outputs += _output(output, sample["reference"], colours.get(output["label"], "var(--base)"))
    image = picture(sample.get("pictures", {}).get("prompt"), sample["prompt"])
    question = _text("prompt", sample["prompt"], image) + _text("reference", _pretty(sample["reference"]))
    return (
        f'<div class="card sample"><header><span class="tag">{name}</span>{html_text(sample["id"])}</header>'
        f'<div class="texts">{question}</div>'
        f'<div class="outputs">{outputs}</div></div>'
    )


def _text(label: str, text: str, image: str = "") -> str:
    return f'<div><p class="label">{label}</p><div class="box">{image}<pre>{html_text(text)}</pre></div></div>'


def picture(uri: str | None, words: str) -> str:
    """An image element, or nothing: only PNG inside the URI itself, since the page makes no request."""
    if uri is None or not uri.startswith("data:image/png;base64,"):
        return ""
    return f'<img class="picture" src="{html_text(uri)}" alt="{html_text(words)}">'


def is_drawn(sample: Mapping[str, Any]) -> bool:
    """Whether the models answered with pictures."""
    return any(output.get("picture") for output in sample["outputs"])


def gallery(samples: Sequence[Mapping[str, Any]], colours: Mapping[str, str]) -> str:
    """A table of pictures: a column for each record, rows for the record itself and for every model."""
    prompts = "".join(f"<th>{html_text(sample['prompt'])}</th>" for sample in samples)
    records = [picture(sample["pictures"].get("reference"), "the record") for sample in samples]
    rows = [f"<tr><td>data</td>{''.join(f'<td>{image}</td>' for image in records)}</tr>"]
    outputs = [{output["label"]: output for output in sample["outputs"]} for sample in samples]
    labels = dict.fromkeys(label for by_label in outputs for label in by_label)
    for label in labels:
        cells = ""
        for by_label in outputs:
            cells += f"<td>{_drawn(by_label[label]) if label in by_label else ''}</td>"
        swatch = f'<span class="swatch" style="--colour: {colours.get(label, "var(--base)")}"></span>'
        rows.append(f"<tr><td>{swatch} <b>{html_name(label)}</b></td>{cells}</tr>")
    head = f"<thead><tr><th></th>{prompts}</tr></thead>"
    return f'<table class="gallery">{head}<tbody>{"".join(rows)}</tbody></table>'


def _drawn(output: Mapping[str, Any]) -> str:
    return f"{picture(output.get('picture'), output['prediction'])}<small>{output['score']:.2f}</small>"


def _output(output: Mapping[str, Any], reference: str, colour: str) -> str:
    kind = "right" if output["right"] else "partly" if output["score"] > 0 else "wrong"
    mark = {"right": "✓ right", "partly": f"{100 * output['score']:.0f}% of points", "wrong": "✗ wrong"}[kind]
    cut = '<p class="gone">cut off: the limit of new tokens was reached</p>' if output["finish"] == "length" else ""
    return (
        f'<div class="output" style="--colour: {colour}"><p class="label"><span>{html_name(output["label"])}</span>'
        f'<span class="tag {kind}">{mark}</span></p><pre>{marked(output["prediction"], reference)}</pre>{cut}</div>'
    )


def marked(prediction: str, reference: str) -> str:
    """The prediction as HTML; fields of a JSON object, or words, that differ from the reference are marked."""
    if not prediction.strip():
        return '<span class="gone">(empty)</span>'
    answered, wanted = _object(prediction), _object(reference)
    if answered is not None and wanted is not None:
        return _marked_fields(answered, wanted)
    return _marked_words(prediction, reference)


def _object(text: str) -> dict[str, Any] | None:
    """The JSON object that a text is, in a code fence or not; None for any other text."""
    fenced = FENCE.match(text.strip())
    try:
        parsed = json.loads(fenced.group(1) if fenced else text)
    except (ValueError, RecursionError):  # a model may write ten thousand brackets
        return None
    return parsed if isinstance(parsed, dict) else None


def _pretty(text: str) -> str:
    fields = _object(text)
    return text if fields is None else "\n".join(_field(key, value) for key, value in fields.items())


def _field(key: str, value: Any) -> str:
    return f"{key}: {json.dumps(value, ensure_ascii=False)}"


def _marked_fields(answered: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    lines = []
    for key, value in answered.items():
        line = html_text(_field(key, value))
        same = key in wanted and json.dumps(value, sort_keys=True) == json.dumps(wanted[key], sort_keys=True)
        lines.append(line if same else f"<mark>{line}</mark>")
    lines += [f'<span class="gone">{html_text(key)} is missing</span>' for key in wanted if key not in answered]
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
