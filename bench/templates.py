"""A table of chat templates by kinds of conversation: right, context, refused, wrong; beside the masks of TRL.

    python bench/templates.py FOLDER [--write]

FOLDER holds .jinja files; each gets a byte-level tokenizer whose added tokens are those that its text names. Where
`trl` can be imported, its own way to mask answers (`assistant_only_loss`) is judged by the same rules: the training
template that it knows for this one, if any, and the mask of `{% generation %}`. `--write` writes results/templates.md.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter, defaultdict
from importlib import metadata, util
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))

from luthier.conformance.byte_tokenizer import tokenizer_for  # noqa: E402
from luthier.conformance.chat_template import (  # noqa: E402
    OUTCOMES,
    TemplateVerdict,
    check_conversation,
    check_folder,
    conversations,
)
from luthier.errors import DataError  # noqa: E402

Verdicts = dict[str, list[TemplateVerdict]]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    ours = dict(check_folder(options.folder))
    theirs = with_trl(options.folder) if util.find_spec("trl") else {}
    page = "\n".join(lines(ours, theirs))
    print(page)
    if options.write:
        (ROOT / "bench" / "results" / "templates.md").write_text(page + "\n", encoding="utf-8")


def with_trl(folder: Path) -> Verdicts:
    """The verdicts on TRL's masks."""
    verdicts: Verdicts = {}
    for path in sorted(folder.glob("*.jinja")):
        tokenizer = tokenizer_for(path.read_text(encoding="utf-8"))
        verdicts[path.stem] = []
        rows = trl_rows(tokenizer)
        for kind, messages in conversations().items():
            verdicts[path.stem].append(check_conversation(tokenizer, kind, messages, rows))
    return verdicts


def trl_rows(tokenizer: Any) -> Any:
    """The rows of TRL, as its trainer makes them with `assistant_only_loss=True`."""
    from trl.chat_template_utils import get_training_chat_template

    problem = None
    try:
        # The template that TRL trains with is judged by what it writes itself.
        tokenizer.chat_template = get_training_chat_template(tokenizer) or tokenizer.chat_template
    except Exception as error:
        problem = f"{type(error).__name__}: {error}".splitlines()[0]

    def rows(messages: list[dict[str, Any]], tools: Any) -> tuple[list[int], list[float], tuple[str, ...]]:
        if problem is not None:
            raise DataError(problem)
        try:
            encoded = tokenizer.apply_chat_template(
                messages, tools=tools, return_dict=True, return_assistant_tokens_mask=True
            )
        except Exception as error:
            raise DataError(f"{type(error).__name__}: {error}".splitlines()[0]) from None
        if 1 not in encoded["assistant_masks"]:
            raise DataError("the mask is empty: the template has no {% generation %}")
        return encoded["input_ids"], encoded["assistant_masks"], ("trl writes no notes",)

    return rows


def lines(ours: Verdicts, theirs: Verdicts) -> list[str]:
    """The page."""
    about_trl = f", TRL {metadata.version('trl')} (`assistant_only_loss`)" if theirs else ""
    page = [
        "# Chat templates by kinds of conversation",
        "",
        f"Command: `python bench/templates.py FOLDER --write`, on {len(ours)} public templates: llama.cpp's",
        "`models/templates`, and those in the packages of TRL, vLLM and axolotl; none is part of this project.",
        "",
        "- *Right*: the row's text is what the template writes, every word of the assistant in it is a target, no",
        "  other word is, and each turn's targets begin behind the generation prompt and end where the turn ends.",
        "- *Context*: an answer is no target, and a note says so. *Refused*: the record is refused, with the reason.",
        "- *Wrong*: anything else. *Not written*: the template does not write what this kind is about, or refuses it,",
        "  whatever form it gets it in; what it does write is no fault.",
        "",
        "The judge is `conformance/chat_template.py`. It asks the template, not the code that makes the masks. For TRL",
        "it judges the template that TRL trains with. Most of TRL's wrong masks train on text that the generation",
        "prompt holds already (an empty block of thoughts), or on the end of an empty turn; it refuses what has no",
        "training template. Messages reach TRL as they are: arguments as an object, apart from `string arguments`.",
        "",
        f"transformers {metadata.version('transformers')}{about_trl}.",
        "",
        "| kind | " + " | ".join([*OUTCOMES, *(f"TRL: {outcome}" for outcome in OUTCOMES if theirs)]) + " |",
        "|---" * (1 + len(OUTCOMES) * (2 if theirs else 1)) + "|",
    ]
    for kind in conversations():
        cells = [*counts(ours, kind), *(counts(theirs, kind) if theirs else [])]
        page.append(f"| {kind} | " + " | ".join(map(str, cells)) + " |")
    page += ["", "## Everything that is not right, with its reason", ""]
    reasons: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for name, verdicts in ours.items():
        for verdict in verdicts:
            if verdict.outcome != "right":
                reasons[verdict.outcome, shortened(verdict.reason)].append(f"{name} ({verdict.kind})")
    for (outcome, reason), names in sorted(reasons.items()):
        grouped = defaultdict(list)
        for name in names:
            stem, _, kind = name.partition(" (")
            grouped[stem].append(kind.removesuffix(")"))
        listed = "; ".join(f"{stem}: {', '.join(kinds)}" for stem, kinds in grouped.items())
        page.append(f"- {outcome}: {reason or 'the template leaves it out, whatever it is called'}. {listed}")
    return page


def shortened(reason: str) -> str:
    """A reason without the record's name and roles."""
    return (
        reason.removeprefix("the conversation: record : ").removeprefix("the conversation: ").split("\n")[0].rstrip(".")
    )


def counts(verdicts: Verdicts, kind: str) -> list[int]:
    outcomes = Counter(verdict.outcome for listed in verdicts.values() for verdict in listed if verdict.kind == kind)
    return [outcomes[name] for name in OUTCOMES]


main()
