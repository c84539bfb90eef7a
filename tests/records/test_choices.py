"""Choices by their text, letter, index or number."""

import pytest

from luthier.records.choices import chosen, labelled, lists_choices, naming_of, read_choices

PETS = read_choices(["a cat", "a dog", "an owl", "a rat"])
DIGITS = read_choices(["3", "2", "0", "1"])
LETTERS = read_choices(["C", "A", "B"])


@pytest.mark.parametrize(
    ("answer", "index"),
    [("a dog", 1), (" A Dog. ", 1), ("B", 1), ("(B)", 1), ("b", 1), ("B.", 1), ("b)", 1), ("[B]", 1), ("B. a dog", 1),
     ("(B) a dog", 1), ("1", 1), ("1.0", 1), ("0", 0), ("4", 3), ("5", None), ("E", None), ("dog", None), ("", None),
     ("B. a cat", None), ("-1", None), ("1.5", None), ("I think B", None)],
)  # fmt: skip
def test_an_answer_names_a_choice(answer, index):
    assert chosen(answer, PETS) == index


def test_text_comes_first_and_one_naming_holds_for_a_set():
    assert chosen("2", DIGITS) == 1 and chosen("2", DIGITS, "index") == 2 and chosen("2", DIGITS, "number") == 1
    assert chosen("A", LETTERS) == 1 and chosen("A", LETTERS, "letter") == 0
    assert naming_of([("2", DIGITS), ("1", PETS)])[0] == "index"
    assert naming_of([("B", LETTERS), ("D", PETS)])[0] == "letter"
    assert naming_of([("1", PETS), ("4", PETS)])[0] == "number"
    naming, words = naming_of([("2", DIGITS), ("3", DIGITS)])
    assert naming == "text" and "`index`" in words
    assert naming_of([("a dog", PETS), ("2", DIGITS)])[0] == "text"
    assert naming_of([("a dog", PETS), ("B", PETS)]) == ("auto", "each answer is read for itself")
    naming, words = naming_of([("1", PETS), ("2", PETS)])
    assert naming == "index" and "`number`" in words
    assert "set" not in naming_of([("a dog", PETS)])[1]


def test_columns_of_choices():
    assert read_choices([1, 2.5]).texts == ("1", "2.5")
    own = read_choices({"text": ["red", "green"], "label": ["1", "2"]})
    assert own.texts == ("red", "green") and chosen("2", own) == 1 and chosen("2", own, "letter") == 1
    for column in (None, "ab", ["one"], ["a", ""], ["a", None], [True, False], {"text": "ab"}, [["a"], ["b"]]):
        assert read_choices(column) is None
    assert chosen("same", read_choices(["same", "same", "b"])) is None


def test_labels_are_written_as_the_answer_writes_its_own():
    assert labelled("(B)", PETS, "letter") == ("(A)", "(B)", "(C)", "(D)")
    assert labelled("b", PETS, "letter") == ("a", "b", "c", "d")
    assert labelled("B", PETS, "letter") == ("A", "B", "C", "D")
    assert labelled("2", PETS, "index") == ("0", "1", "2", "3")
    assert labelled("2", PETS, "number") == ("1", "2", "3", "4")
    assert lists_choices("Which? A) a cat B) a dog C) an owl D) a rat", PETS)
    assert not lists_choices("Which? A) a cat B) a dog", PETS)
