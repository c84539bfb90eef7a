r"""What kind of text a reference is: a number, a formula, a date, code … `metric: auto` counts these."""

from __future__ import annotations

import re

from luthier.answers.final import MARK
from luthier.answers.mathematics import judge
from luthier.answers.reading import read_answer
from luthier.answers.units import CURRENCY, read_unit
from luthier.data.parsers import boxed, parse_json, parse_number, unclear_number

SHORT = 6
"""Words of a reference that is compared as a whole."""
LONG = 8
"""Words from which a reference is a worked answer if its last line gives a number."""
MONTHS = (
    "jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?"
    "|nov(?:ember)?|dec(?:ember)?"
)
_NUMBER = r"[-+−–]?\s?(?:" + CURRENCY + r")?\s?[-−]?(?:\d{1,3}(?:[,'’]\d{3})+|\d+)?(?:\.\d+)?(?:[eE][-+]?\d+)?"
_NUMERIC = re.compile(
    rf"\(?(?P<number>{_NUMBER}(?:\s?/\s?\d+)?|{_NUMBER} \d+/\d+)\)?\s*"
    rf"(?P<unit>(?:\\?%|°|[^\W\d_]|{CURRENCY}).*|\(.*\))?"
)
_UNIT = re.compile(r"\(?(?:\\?%|°\s?[CFK]?|" + CURRENCY + r"|[a-zμ][\w²³/^.-]*(?: [a-z/][\w²³/^.-]*){0,4})\)?\.?")
_TIME_WORDS = re.compile(r"(?i)\(?(?:[ap]\.?m\b|o'?clock|bc\b|ad\b|bce\b|ce\b|(?:st|nd|rd|th)\b|" + MONTHS + r")\b")
_DATE = re.compile(
    rf"(?i)\b(?:{MONTHS})\.?\s+\d|\d(?:st|nd|rd|th)?\s+(?:of\s+)?(?:{MONTHS})\b"
    r"|\b\d{4}[-/.]\d{1,2}[-/.]\d{1,2}|\b\d{1,2}[-/.]\d{1,2}[-/.]\d{2,4}\b"
)
_TIME = re.compile(r"(?i)\b\d{1,2}:\d{2}(?::\d{2})?(?:\s*[ap]\.?m\b)?|\b\d{1,2}\s*[ap]\.?m\b|\d\s*o'?clock")
_URL = re.compile(
    r"(?i)(?:https?|ftp|file)://\S+|www\.\S+|[\w.+-]+@[\w-]+(?:\.[\w-]+)+|(?:[\w-]+\.)+[a-z]{2,6}/\S*"
    r"|/[\w.-]+(?:/[\w.-]*)+"
)
_VERSION = re.compile(r"(?i)v?\d+(?:\.\d+){2,}[\w.+-]*|v\d+(?:\.\d+)*|(?:version|release)\s+\d\S*")
_RATIO = re.compile(r"\d+(?:\.\d+)?(?:\s?[:–-]\s?\d+(?:\.\d+)?)+|\d+ (?:to|of|out of) \d+")
_PHONE = re.compile(r"\+?\(?\d(?:[\s().-]*\d){8,}|\d{3}[-\s]\d{4}")
_PHONE_GROUPS = re.compile(r"(?=[^-.]+[-.\s])" + _PHONE.pattern)
_CODE = re.compile(
    r"(?im)^\s*(?:select\b.+\bfrom\b|insert into\b|update \S+ set\b|delete from\b|with \w+ as \()"
    r"|^\s*create (?:table|view|index)\b|=>|</\w+>|^\s*\w+\s*=\s*\w+[.(\[]|;\s*$"
    r"|^\s*(?:def|class|import|from|return|print|for|while|if|function|const|let|var|public|#include)\b.*[(){};:=]"
    r"|\A[\w.]{2,}\([^()]*\)\Z|^\s*(?:\$|git|pip|cd|ls|sudo|docker|npm) \S+ -"
)
_IDENTIFIER = re.compile(r"(?=\S*\d)(?=\S*[A-Za-z_-])[\w.-]+|0\d+")
_INTRODUCED = re.compile(
    r"(?i)(?:\b(?:is|are|was|were|be|equals?|equal to|gives?|makes?|costs?|totals?|answer|leaves?|gets?|has|have)\s*:?"
    r"|=)\s*$"
)
_EQUATION = re.compile(r"\d\s*[-+*/×÷=]\s*[$€£]?\d")
_LATEX = re.compile(r"\\[a-zA-Z]{2,}|\$[^$]+\$|[√π∞∪]|\d\^|\^\{|[\[(]\s*-?[\w.∞]+\s*,\s*-?[\w.∞]+\s*[\])]")
_OPERATOR = re.compile(r"\d.*[-+*/^=]|[-+*/^=].*\d|(?<!\w)[a-z] [-+*/=] [a-z](?!\w)")

WORDS = {
    "json": "are JSON objects or lists",
    "math": "give a formula or a number in a box",
    "number": "give a number",
    "date": "are dates",
    "time": "are times",
    "ratio": "are ratios, ranges or scores",
    "version": "are versions",
    "identifier": "are codes, names or numbers of things",
    "url": "are addresses",
    "phone": "are phone numbers",
    "code": "are one line of code",
    "title": "are names or titles",
    "digits": "are short texts with digits",
}
"""Kind → how a reason ends: "30 of 30 references are dates"."""
EXACT_KINDS = ("date", "time", "ratio", "version", "identifier", "url", "phone", "code", "title", "digits")
"""Kinds of which another text is another answer, however similar it is."""


def kind_of(reference: str) -> str:
    """The kind of a reference, a key of WORDS; `text` for anything else."""
    kind = _kind(reference.strip())
    # What has the look of a number or formula may still be none that can be read.
    if kind == "number" and parse_number(reference) is None and unclear_number(reference) is None:
        return "text"
    return "text" if kind == "math" and judge(reference, reference) != 1 else kind


def _kind(text: str) -> str:
    if text[:1] in ("{", "[") and isinstance(parse_json(text), dict | list):
        return "json"
    if boxed(text) is not None:
        return "math"
    if MARK in text:
        return "number" if parse_number(text) is not None else "math" if _is_formula(_last_line(text)) else "text"
    if _CODE.search(text):
        return "code" if "\n" not in text else "text"
    short = len(text.split()) <= SHORT and "\n" not in text
    if short:
        return _short_kind(text)
    if _URL.fullmatch(text):
        return "url"
    return "number" if _ends_in_answer(_last_line(text), _EQUATION.search(text) is not None) else "text"


def has_leading_zero(reference: str) -> bool:
    """Whether a reference is digits that begin with 0, as numbers of things do and numbers do not."""
    return re.fullmatch(r"0\d+", reference.strip()) is not None


def _short_kind(text: str) -> str:
    for kind, pattern in (("date", _DATE), ("time", _TIME)):
        if pattern.search(text):
            return kind
    for kind, pattern in (("url", _URL), ("version", _VERSION), ("phone", _PHONE_GROUPS), ("ratio", _RATIO)):
        if pattern.fullmatch(text.rstrip(".")):
            return kind
    if _is_number(text):
        return "number"
    if _IDENTIFIER.fullmatch(text):
        return "math" if _is_formula(text) and _LATEX.search(text) else "identifier"
    if _PHONE.fullmatch(text):
        return "phone"
    if _LATEX.search(text) or (_is_formula(text) and _OPERATOR.search(text)):
        return "math"
    if _ends_in_answer(text, False):
        return "number"
    return "title" if _is_title(text) else "digits" if re.search(r"\d", text) else "text"


def _is_number(text: str) -> bool:
    """Whether a text is a number with nothing but a unit: 9 (apples), $4.50, 12 km, 40 %."""
    match = _NUMERIC.fullmatch(text)
    if match is None or not re.search(r"\d", match["number"]) or has_leading_zero(match["number"]):
        return False
    unit = (match["unit"] or "").strip().rstrip(".")
    if _TIME_WORDS.match(unit):
        return False
    spaced = re.search(r"[\d)]\s+\S", text) is not None
    return (
        not unit
        or read_unit(unit.strip("()")) is not None
        # Right behind the digits, letters are a unit, and a single one or digits among them a code: 4k7, 10x15, 12b.
        or (_UNIT.fullmatch(unit) is not None and (spaced or re.fullmatch(r"\W.*|[^\W\d_]{2,3}", unit) is not None))
    )


def _ends_in_answer(line: str, computed: bool) -> bool:
    """Whether a sentence ends in a number that is its answer: behind `is` or `=`, a price, or `computed`."""
    match = re.search(
        rf"(?P<number>(?:{CURRENCY})?[-−]?(?:{CURRENCY})?(?<![\w.,:/-])\d[\d.,]*)(?P<unit>[^\d\n]*)\Z", line
    )
    if match is None or _DATE.search(line[max(0, match.start() - 12) :]) or not re.search(r"\d", match["number"]):
        return False
    unit = match["unit"].strip(" .*")
    if unit and _UNIT.fullmatch(unit) is None:
        return False
    before = line[: match.start()].rstrip("*$ ")
    price = re.match(CURRENCY, match["number"]) is not None or re.match(r"\s*\\?%", match["unit"]) is not None
    return computed or price or _INTRODUCED.search(before) is not None


def _last_line(text: str) -> str:
    return text.rstrip().rpartition("\n")[2].rpartition(MARK)[2].strip()


def _is_formula(text: str) -> bool:
    return any(reading.formula is not None for reading in read_answer(text))


def _is_title(text: str) -> bool:
    """Whether each word of more than three letters begins with a capital, and two words do."""
    words = re.findall(r"[^\W\d_][\w'’.-]*", text)
    capitals = [word[0].isupper() for word in words]
    return sum(capitals) >= 2 and all(capital for word, capital in zip(words, capitals, strict=True) if len(word) > 3)
