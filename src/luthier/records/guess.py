"""The columns that a file of another shape probably means: guessed from names, types and contents of a sample.

A guess is offered and never used unasked. Where nothing tells a question from an answer, there is none.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from luthier.records.choices import chosen, read_choices

SAMPLE = 200
"""Records that a guess looks at."""
MOSTLY = 0.8
LABELS = 20
"""Most different values of a column of labels."""
EXAMPLE = 60  # characters

Columns = dict[str, str | list[str]]

# Names in order of likelihood; written in lower case with words joined by `_`, and without a plural's `s`.
CONVERSATION = ("message", "conversation", "dialog", "dialogue", "chat", "turn", "chat_history", "gespräch")
QUESTION = (
    *("question", "instruction", "prompt", "query", "problem", "user", "human", "user_message", "user_prompt", "task"),
    *("q", "frage", "aufgabe", "anweisung", "eingabe", "pregunta", "domanda", "pergunta", "vraag", "вопрос"),
    *("问题", "質問", "质问", "질문", "input", "request", "text", "sentence", "review", "article"),
    *("document", "source", "src", "passage", "context"),
)
WEAK_QUESTION = QUESTION[QUESTION.index("text") :]
"""Names that are questions beside a column of answers alone."""
STRONG_QUESTION = QUESTION[: QUESTION.index("input")]
"""Names of questions that no document has."""
ASKING = ("question", "q", "frage", "pregunta", "domanda", "pergunta", "vraag", "вопрос", "问题", "質問", "질문")
"""Names of columns that hold questions in the narrow sense, with a question mark."""
ANSWER = (
    *("answer", "completion", "output", "response", "solution", "reply", "assistant", "assistant_message", "bot"),
    "answer_key",
    *("a", "antwort", "ausgabe", "lösung", "loesung", "réponse", "reponse", "respuesta", "risposta", "resposta"),
    *("antwoord", "ответ", "回答", "答案", "答え", "답변", "label", "sentiment", "intent", "klasse", "class"),
    *("target", "tgt", "canonical_solution", "expected", "gold", "reference", "summary", "highlight", "translation"),
    *("category", "correct", "correct_option", "result"),
)
WEAK_ANSWER = ANSWER[ANSWER.index("target") :]
"""Names that are answers beside a column of questions alone."""
FILLERS = {"text", "user", "model", "final", "correct", "gold", "expected", "full", "raw", "original", "content"}
"""Words that may stand beside a usual name, as in `question_text` and `correct_answer`."""
JOINED = (
    ("instruction", "input"),
    ("anweisung", "eingabe"),
    ("body", "question"),
    ("context", "question"),
    ("passage", "question"),
    ("story", "question"),
    ("kontext", "frage"),
    ("premise", "hypothesis"),
    ("sentence1", "sentence2"),
)
"""Columns that are a prompt together, in the order in which it holds them."""
BETTER = ("chosen", "preferred", "better", "winner", "accepted", "good", "positive")
WORSE = ("rejected", "dispreferred", "worse", "loser", "declined", "bad", "negative")
ANSWER_WORDS = {"response", "answer", "completion", "output", "text", "reply"}
CHOICES = ("choice", "option", "candidate", "alternative", "answer_choice")
DOCUMENT = ("text", "content", "document", "body", "article", "story", "code", "page", "passage", "markdown")
ASIDE = re.compile(
    r"(.+_)?(id|uid|uuid|guid|idx|index|key|hash|nr|no|num|number|url|link|source|split|set|language|lang|level|type|"
    r"difficulty|topic|subject|date|time|timestamp|created|created_at|author|name|title|score|rating|model|dataset|"
    r"unnamed|unnamed_\d+|)"
)
"""Names of columns that hold neither question nor answer, unless they are a usual name of either."""
NUMBER = re.compile(r"[-+]?[\d.,]+%?")


@dataclass(frozen=True)
class Column:
    """A column of a sample.

    Attributes:
        kind: `text`, `number`, `truth`, `messages`, `texts` (a list of them), `mapping`, `other` or `empty`.
        filled: share of the records that have it, 0 to 1.
        distinct: number of different values.
        questions: share of its texts that end in a question mark.
        numbers: share of its texts that are numbers.
        example: the first value, shortened.
    """

    name: str
    kind: str
    filled: float
    distinct: int
    questions: float
    numbers: float
    example: str

    @property
    def key(self) -> str:
        """The name in lower case, words joined by `_`, without a plural's `s`."""
        words = re.sub(r"(?<=[a-zа-яß-ÿ])(?=[A-Z])", "_", self.name.strip())
        return singular(re.sub(r"\W+", "_", words.casefold()).strip("_"))


@dataclass(frozen=True)
class Guess:
    """A mapping for `columns:` and what it leaves unread; no mapping, with the reason, where nothing tells.

    Attributes:
        columns: column of Luthier → column of the file, or several that are joined.
        unread: the other columns.
        reason: why it is so, as a clause.
        described: every column of the file with its kind and an example.
        example: the first record that has all columns of the mapping.
    """

    columns: Columns
    unread: tuple[str, ...]
    reason: str
    described: tuple[str, ...]
    example: Mapping[str, Any]

    @property
    def text(self) -> str:
        """The mapping as a recipe writes it, `{prompt: Question, completion: Answer}`."""
        return as_written(self.columns)

    @property
    def hint(self) -> str:
        """What to write, or what the columns hold."""
        if self.columns:
            return f"Name yours in the recipe, for example `columns: {self.text}`."
        listed = "; ".join(self.described)
        return (
            "Name yours in the recipe, `columns: {prompt: ..., completion: ...}`. Nothing tells them apart for certain "
            f"({self.reason}): {listed}."
        )


def guess(rows: Sequence[Mapping[str, Any]]) -> Guess:
    """The mapping that these records probably mean; of more than SAMPLE records, some of all parts are looked at."""
    step = max(1, len(rows) // SAMPLE)
    columns = describe(rows[::step][:SAMPLE])
    mapping, reason = {}, ""
    for attempt in (_conversation, _pair, _question_and_answer, _document):
        mapping, reason = attempt(columns, rows)
        if mapping or reason:
            break
    names = {ours: theirs for ours, theirs in mapping.items() if ours not in ("role", "content")}
    read = {name for theirs in names.values() for name in ([theirs] if isinstance(theirs, str) else theirs)}
    unread = tuple(column.name for column in columns if column.name not in read)
    described = tuple(f"`{column.name}` ({column.kind}: {column.example})" for column in columns)
    whole = (row for row in rows if all(row.get(name) not in (None, "") for name in read))
    return Guess(mapping, unread, reason or "no column has a usual name", described, next(whole, rows[0]))


def describe(rows: Sequence[Mapping[str, Any]]) -> list[Column]:
    """The columns of these records, in the order of their first record."""
    names = dict.fromkeys(str(name) for row in rows for name in row)
    columns = []
    for name in names:
        contents = [row[name] for row in rows if row.get(name) is not None]
        kinds = [_kind(content) for content in contents]
        filled = [content for content, kind in zip(contents, kinds, strict=True) if kind != "empty"]
        kinds = [kind for kind in kinds if kind != "empty"]
        kind = max(dict.fromkeys(kinds), key=kinds.count) if kinds else "empty"
        texts = [content.strip() for content in filled if isinstance(content, str)]
        asking = sum(text.endswith(("?", "？", "؟", "?)", '?"')) for text in texts) / max(1, len(texts))
        numbers = sum(NUMBER.fullmatch(text) is not None for text in texts) / max(1, len(texts))
        distinct = len({repr(content) for content in filled})
        example = _shortened(filled[0]) if filled else "empty"
        columns.append(Column(name, kind, len(filled) / max(1, len(rows)), distinct, asking, numbers, example))
    return columns


def as_written(columns: Mapping[str, str | Sequence[str]]) -> str:
    """A mapping of columns in YAML, on one line."""
    pairs = []
    for ours, theirs in columns.items():
        several = not isinstance(theirs, str)
        written = f"[{', '.join(_scalar(name) for name in theirs)}]" if several else _scalar(theirs)
        pairs.append(f"{ours}: {written}")
    return f"{{{', '.join(pairs)}}}"


def classes_beside(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """The column of labels beside records that are read as plain `text`, and so is not learned; None without one."""
    for column in describe(rows[:SAMPLE]):
        named = column.key in ANSWER and column.kind in ("text", "number", "truth")
        if named and column.name not in ("text", "prompt", "completion") and column.filled >= MOSTLY:
            return column.name
    return None


def _conversation(columns: Sequence[Column], rows: Sequence[Mapping[str, Any]]) -> tuple[Columns, str]:
    talks = [column for column in columns if column.kind == "messages"]
    column = _first(talks, CONVERSATION) or (talks[0] if len(talks) == 1 else None)
    if column is None or _first(talks, BETTER):
        return {}, ""
    mapping: Columns = {"messages": column.name}
    turns = [turn for row in rows[:SAMPLE] for turn in _turns(row.get(column.name))]
    keys = {key for turn in turns for key in turn}
    if turns and not ({"role", "content"} <= keys or {"from", "value"} <= keys):
        inner = _inner_names(turns)
        if inner is None:
            return {}, f"the messages in `{column.name}` have the keys {', '.join(sorted(keys))}"
        mapping |= inner
    return mapping, f"`{column.name}` holds conversations"


def _inner_names(turns: Sequence[Mapping[str, Any]]) -> Columns | None:
    """The keys of role and content: few different words, and the longest text; None if nothing fits."""
    columns = [column for column in describe(turns) if column.kind == "text" and column.filled >= MOSTLY]
    lengths = {column.name: sum(len(str(turn.get(column.name, ""))) for turn in turns) for column in columns}
    content = max(columns, key=lambda column: lengths[column.name], default=None)
    speakers = [column for column in columns if column is not content and 1 < column.distinct <= 6]
    if content is None or len(speakers) != 1:
        return None
    return {"role": speakers[0].name, "content": content.name}


def _pair(columns: Sequence[Column], rows: Sequence[Mapping[str, Any]]) -> tuple[Columns, str]:
    fitting = [column for column in columns if column.kind in ("text", "messages")]
    better, worse = (_side(fitting, words) for words in (BETTER, WORSE))
    if better is None or worse is None or better is worse:
        return {}, ""
    mapping = _prompt([column for column in fitting if column not in (better, worse)])
    return {**mapping, "chosen": better.name, "rejected": worse.name}, "two columns judge answers by their names"


def _side(columns: Sequence[Column], words: Sequence[str]) -> Column | None:
    """The column that is called by one of the words, alone or beside a word for an answer (`chosen_response`)."""
    for word in words:
        for column in columns:
            pieces = {singular(piece) for piece in column.key.split("_")}
            if word in pieces and pieces - {word} <= ANSWER_WORDS:
                return column
    return None


def _question_and_answer(columns: Sequence[Column], rows: Sequence[Mapping[str, Any]]) -> tuple[Columns, str]:
    answers = [column for column in columns if column.kind in ("text", "number", "truth") and column.filled > 0.5]
    texts = [column for column in columns if column.kind == "text"]
    answer = _first(answers, ANSWER)
    prompt = _prompt([column for column in texts if column is not answer])
    several = prompt.get("prompt")
    asked = [column for column in texts if column.name in ([several] if isinstance(several, str) else several or [])]
    prose = [column for column in texts if column.numbers < MOSTLY and not _aside(column)]
    others = [column for column in prose if column not in asked and column is not answer]
    reason = "their usual names"
    if answer is not None and (answer.key, answer.kind) == ("label", "truth") and others:
        answer = None  # the label of a record says whether its answer is good, and another column holds the answer
    if asked and answer is None:
        if nested := _first([column for column in columns if column.kind in ("mapping", "texts")], ANSWER):
            kind = {"mapping": "mappings", "texts": "lists"}[nested.kind]
            return {}, f"`{nested.name}` holds {kind}, {nested.example}, and an answer is text"
        if len(others) == 1 and asked[0].key not in WEAK_QUESTION:
            answer, reason = others[0], f"`{several}` is a usual name, and one column of text is left"
    elif answer is not None and not asked and len(others) == 1 and answer.key not in WEAK_ANSWER:
        asked, reason = others, f"`{answer.name}` is a usual name, and one column of text is left"
        prompt = {"prompt": asked[0].name}
    elif answer is None and not asked:
        return _by_contents(prose)
    if answer is None or not asked:
        return {}, ""
    ask = any(column.key in ASKING for column in asked)
    if ask and answer.questions > 0.5 and max(column.questions for column in asked) < 0.2:
        return {}, f"`{answer.name}` holds questions, and `{asked[-1].name}` none, against their names"
    mapping: Columns = {**prompt, "completion": answer.name}
    offered = _first([column for column in columns if column.kind in ("texts", "mapping")], CHOICES)
    pairs = [] if offered is None else [(row.get(answer.name), read_choices(row.get(offered.name))) for row in rows]
    readable = [(str(text), choices) for text, choices in pairs if choices is not None and text is not None]
    if offered is None or not readable:
        return mapping, reason
    if offered.name != "choices":
        mapping["choices"] = offered.name
    # A letter or an index says nothing to someone who does not see the choices.
    if sum(chosen(text, choices, "text") is None for text, choices in readable) > len(readable) / 2:
        mapping["prompt"] = [*(column.name for column in asked), offered.name]
    return mapping, reason


def _by_contents(texts: Sequence[Column]) -> tuple[Columns, str]:
    """Without a usual name: questions by their marks, labels by their number."""
    if len(texts) == 2:
        asking = [column for column in texts if column.questions > 0.5]
        other = [column for column in texts if column.questions < 0.1]
        if len(asking) == len(other) == 1:
            return {"prompt": asking[0].name, "completion": other[0].name}, f"`{asking[0].name}` holds questions"
    if len(texts) > 1:
        return {}, f"{len(texts)} columns of text, none with a usual name"
    return {}, ""


def _document(columns: Sequence[Column], rows: Sequence[Mapping[str, Any]]) -> tuple[Columns, str]:
    texts = [column for column in columns if column.kind == "text" and not _aside(column) and column.numbers < MOSTLY]
    if len(texts) != 1:
        return {}, ""
    if any(column.key in ANSWER for column in columns if column is not texts[0]):
        return {}, f"`{texts[0].name}` is the only text beside another column of answers"
    if _first(texts, DOCUMENT) is None:
        others = [column.name for column in columns if column is not texts[0] and not _aside(column)]
        if others:
            return {}, f"`{texts[0].name}` is the only text, and `{others[0]}` may be what belongs to it"
        if _first(texts, STRONG_QUESTION) is not None:
            return {}, f"`{texts[0].name}` holds questions, and nothing answers them"
    return {"text": texts[0].name}, f"`{texts[0].name}` is the only column of text"


def _prompt(columns: Sequence[Column]) -> Columns:
    """The column of questions, or the columns that are one together; empty without either."""
    by_key = {column.key: column for column in reversed(columns)}
    for names in JOINED:
        if all(singular(name) in by_key for name in names):
            return {"prompt": [by_key[singular(name)].name for name in names]}
    column = _first(columns, QUESTION)
    return {} if column is None else {"prompt": column.name}


def _first(columns: Sequence[Column], names: Iterable[str]) -> Column | None:
    """The column that has the first of these names, or a name in which only FILLERS stand beside it."""
    keys = {column.key: column for column in reversed(columns)}
    names = [singular(name) for name in names]
    if exact := next((keys[name] for name in names if name in keys), None):
        return exact
    for name in names:
        for key, column in keys.items():
            pieces = {singular(piece) for piece in key.split("_")}
            if name in pieces and pieces - {name} <= FILLERS:
                return column
    return None


def _aside(column: Column) -> bool:
    return ASIDE.fullmatch(column.key) is not None


def singular(name: str) -> str:
    """The name without the `s` of a plural."""
    return name[:-1] if len(name) > 3 and name.endswith("s") and not name.endswith(("ss", "us", "is")) else name


def _kind(content: Any) -> str:
    if isinstance(content, bool):
        return "truth"
    if isinstance(content, int | float):
        return "number"
    if isinstance(content, str):
        return "messages" if _turns(content) else ("text" if content.strip() else "empty")
    if isinstance(content, list):
        if not content:
            return "empty"
        return "messages" if _turns(content) else ("texts" if isinstance(content[0], str) else "other")
    return "mapping" if isinstance(content, Mapping) else "other"


def _turns(content: Any) -> list[Mapping[str, Any]]:
    """The messages of a conversation, also of one that is written as JSON text; empty for anything else."""
    if isinstance(content, str) and content.lstrip().startswith("[{"):
        try:
            content = json.loads(content)
        except ValueError:
            return []
    if not isinstance(content, list) or not content:
        return []
    # Two keys at least: who speaks, and what.
    fit = all(
        isinstance(turn, Mapping) and sum(isinstance(text, str) for text in turn.values()) > 1 for turn in content
    )
    return content if fit else []


def _shortened(content: Any) -> str:
    text = repr(content)
    return text if len(text) <= EXAMPLE else f"{text[: EXAMPLE - 3]}..."


def _scalar(name: str) -> str:
    """A name as YAML writes it: with quotes where it would be read as something else."""
    plain = re.fullmatch(r"[^\W\d][\w.-]*(?: [\w.-]+)*", name)
    words = ("true", "false", "null", "yes", "no", "on", "off", "y", "n")
    return name if plain and name.casefold() not in words else json.dumps(name, ensure_ascii=False)
