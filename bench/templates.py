"""A table of chat templates by kinds of conversation: right, context, refused, wrong; beside TRL's masks.

    python bench/templates.py FOLDER [--trl PYTHON] [--kinds tools,multi]

FOLDER holds .jinja files. Each gets a byte-level tokenizer whose added tokens are those that the template's text names.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

from luthier.data.render import Renderer
from luthier.data.template_check import check_conversation, conversations
from luthier.data.template_tokenizer import tokenizer_for
from luthier.errors import LuthierError


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kinds", default="")
    options = parser.parse_args()
    kinds = options.kinds.split(",") if options.kinds else list(conversations())
    counts = {kind: Counter() for kind in kinds}
    for path in sorted(options.folder.glob("*.jinja")):
        try:
            tokenizer = tokenizer_for(path.read_text(encoding="utf-8"))
            renderer = Renderer(tokenizer)
        except LuthierError as error:
            print(path.stem, error.message)
            continue
        for kind in kinds:
            try:
                verdict = check_conversation(tokenizer, renderer, kind, conversations()[kind])
            except Exception as error:
                print("CRASH", path.stem, kind, repr(error)[:150]); counts[kind]['crash'] += 1; continue
            counts[kind][verdict.outcome] += 1
            if verdict.outcome not in ("right", ):
                print(f"{verdict.outcome:12} {kind:18} {path.stem:55} {verdict.reason[:220]!r}")
    for kind in kinds:
        print(kind, dict(counts[kind]), file=sys.stderr)


main()
