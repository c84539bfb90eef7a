"""How often do readers of mathematical answers err? `python bench/readers.py` judges made-up pairs of answers.

The pairs are those of reader_pairs.py. Luthier's reader stands beside math-verify (`pip install math-verify`), which
takes the boxes of both texts, without a limit of time. Writes results/readers.md: counts of wrong judgements by form,
and examples.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from reader_pairs import Written, pairs

from luthier.answers.mathematics import judge

Judge = Callable[[str, str], bool]
OUTPUT = Path(__file__).parent / "results" / "readers.md"


def ours(text: str, gold: str) -> bool:
    return judge(text, gold) == 1.0


def of_math_verify() -> Judge:
    from math_verify import parse, verify

    def judged(text: str, gold: str) -> bool:
        gold_parsed = parse(gold, parsing_timeout=None)
        return verify(gold_parsed, parse(text, parsing_timeout=None), timeout_seconds=None)

    return judged


def boxed(answer: Written) -> str:
    return f"$\\boxed{{{answer.text}}}$"


def errors(judged: Judge, drawn: list[tuple[str, Written, Written, bool]]) -> tuple[list[str], Counter[str], float]:
    """Wrong judgements as lines of a table, their counts by kind, and seconds per pair."""
    lines, counts = [], Counter[str]()
    started = time.perf_counter()
    for _, answer, gold, right in drawn:
        if judged(boxed(answer), boxed(gold)) != right:
            kind = "right, judged wrong" if right else "wrong, judged right"
            counts[kind] += 1
            lines.append(
                f"| `{answer.text}` | `{gold.text}` | {answer.form}; {gold.form} | {kind} |".replace("\\|", "|")
            )
    return lines, counts, (time.perf_counter() - started) / len(drawn)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=4000)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    drawn = pairs(most=arguments.pairs)
    right = sum(pair[3] for pair in drawn)
    text = [
        "# Readers of mathematical answers",
        "",
        f"`python bench/readers.py`: {len(drawn)} made-up pairs in boxes, {right} of them right; the others are the",
        "negative, a multiple, a turned pair, another bracket.",
        "",
        "| reader | right, judged wrong | wrong, judged right | ms per pair |",
        "|---|---|---|---|",
    ]
    readers = {"luthier": ours, f"math-verify {version('math-verify')}": of_math_verify()}
    examples: list[str] = []
    for name, judged in readers.items():
        lines, counts, seconds = errors(judged, drawn)
        text.append(
            f"| {name} | {counts['right, judged wrong']} | {counts['wrong, judged right']} | {seconds * 1000:.2f} |"
        )
        examples += ["", f"## {name}: {len(lines)} judgements that differ", ""]
        if lines:
            examples += ["| answer | gold answer | forms | |", "|---|---|---|---|", *_first_of_each_form(lines)]
    arguments.output.write_text("\n".join(text + examples) + "\n")
    print("\n".join(text))


def _first_of_each_form(lines: list[str], most: int = 60) -> list[str]:
    """The first line of each pair of forms and kind of error."""
    firsts: dict[str, str] = {}
    for line in lines:
        firsts.setdefault(line.split("|", 3)[3], line)
    return list(firsts.values())[:most]


if __name__ == "__main__":
    main()
