"""Python programs in answers: which lines of a text are the program."""

from __future__ import annotations

import ast
import re
import textwrap
from dataclasses import dataclass

_FENCE = re.compile(r"[ \t]*(?P<fence>`{3,}|~{3,})[ \t]*(?P<info>[^`\n]*)")
LONGEST = 100_000
"""Characters of a block that is parsed to see whether it is a program."""


@dataclass(frozen=True)
class FencedBlock:
    """A fenced block: its language in lower case, empty if it names none, and its lines."""

    language: str
    text: str


def program_of(answer: str) -> str:
    """The Python program of an answer.

    It is the last fenced block whose language begins with `py`. If that block defines nothing, as a call of what
    earlier blocks define, these blocks come before it. Without such a block it is the last block without a language
    that is a program and no mere expression (such as output), and without blocks the whole answer.
    """
    blocks = fenced_blocks(answer)
    python = [block.text for block in blocks if block.language.startswith("py")]
    if python:
        return python[-1] if len(python) == 1 or _defines(python[-1]) else "\n\n".join(python)
    for candidates in ([block for block in blocks if not block.language], blocks):
        programs = [block.text for block in candidates if _defines(block.text)]
        if programs:
            return programs[-1]
    unnamed = [block.text for block in blocks if not block.language]
    return unnamed[-1] if unnamed else answer


def fenced_blocks(text: str) -> list[FencedBlock]:
    """The fenced blocks of a text, read line by line; a block that is not closed ends with the text.

    A fence opens with any language and closes with at least as many of the same sign and nothing behind them.
    """
    blocks: list[FencedBlock] = []
    fence, language, lines = "", "", list[str]()
    for line in text.splitlines():
        match = _FENCE.fullmatch(line)
        if not fence:
            if match is not None:
                fence, lines = match["fence"], []
                language = (match["info"].split() or [""])[0].strip("{}.").lower()
        elif match is not None and not match["info"].strip() and match["fence"].startswith(fence):
            blocks.append(FencedBlock(language, textwrap.dedent("\n".join(lines))))
            fence = ""
        else:
            lines.append(line)
    if fence:
        blocks.append(FencedBlock(language, textwrap.dedent("\n".join(lines))))
    return blocks


def _defines(text: str) -> bool:
    """Whether a text is Python that defines a function, class or name, or imports one."""
    if len(text) > LONGEST:
        return False
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    defining = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign, ast.Import)
    return any(isinstance(statement, (*defining, ast.ImportFrom)) for statement in tree.body)
