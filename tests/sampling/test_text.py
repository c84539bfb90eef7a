"""The text of an answer."""

from luthier.sampling.text import answer_text


def decode(ids):
    return "".join(chr(code) for code in ids)


def ids(text):
    return [ord(letter) for letter in text]


def test_the_end_token_and_everything_from_the_first_stop_string_is_left_out():
    assert answer_text([*ids("four"), 0], {0}, decode) == "four"
    assert answer_text(ids("four"), {0}, decode) == "four"
    assert answer_text(ids("four\n\nfive;"), {0}, decode, [";", "\n\n"]) == "four"
    assert answer_text(ids("four"), {0}, decode, ["x"]) == "four"
    assert answer_text([], {0}, decode, ["x"]) == ""
