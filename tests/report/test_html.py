import re
from html.parser import HTMLParser

import pytest

from luthier.report.html import colours, to_html
from luthier.report.side_by_side import marked

VOID = {"meta", "br", "wbr", "link", "img", "hr"}


class Checker(HTMLParser):
    """Follows open elements; a file that loads anything or closes wrongly is caught."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.open, self.words, self.tags = [], [], set()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        for name, value in attrs:
            assert not name.startswith("on"), name
            if name in ("src", "href", "xlink:href"):
                assert value.startswith("#"), value
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def read(results):
    checker = Checker()
    checker.feed(to_html(results))
    assert not checker.open
    return checker


@pytest.mark.parametrize("name", ["several", "single", "hostile"])
def test_well_formed_and_self_contained(name, request):
    checker = read(request.getfixturevalue(name))
    assert not checker.tags & {"script", "iframe", "link", "img", "b-x"}
    assert "url(http" not in "".join(checker.words) and "@import" not in "".join(checker.words)


def test_user_text_is_shown_and_never_markup(hostile):
    checker = read(hostile)
    assert "<b>x</b> & 50%_$#{a}|`*" in checker.words
    assert "<script>" not in to_html(hostile)


def test_one_seed_page(single):
    words = " ".join(read(single).words)
    for wanted in (
        "One run each: these models, not these methods",
        "the loss exploded",
        "What this cannot tell",
        "asft",
    ):
        assert wanted in words, wanted


def test_plots_take_their_colours_from_the_page(several):
    page = to_html(several)
    assert page.count("<svg") == 6
    assert "var(--series-02)" in page and "prefers-color-scheme: dark" in page
    assert not re.findall(r"#0[1-7]0[2-7]\w\w\b", page)


def test_a_failed_run_shifts_no_colour(single):
    assert colours(single) == {"sft": "var(--series-00)", "asft": "var(--series-02)"}


def test_the_page_is_the_same_every_time(several):
    assert to_html(several) == to_html(several)


def test_fields_that_differ_are_marked():
    found = marked('{"a": 1, "b": "<x>"}', '{"a": 1, "b": "y", "c": 2}')
    assert found.splitlines()[0] == "a: 1"
    assert "<mark>b: &quot;&lt;x&gt;&quot;</mark>" in found and "c is missing" in found
    assert "<mark>" not in marked('{"b": 2, "a": 1}', '{"a": 1, "b": 2}')
    assert "<mark>a: true</mark>" in marked('{"a": true}', '{"a": 1}')


def test_words_that_differ_are_marked():
    assert marked("the answer is 12", "the answer is 15") == "the answer is <mark>12</mark>"
    assert marked("the answer is 15", "the answer is 15") == "the answer is 15"
    assert "(empty)" in marked("  ", "x")
    assert marked("<i>", "something else entirely") == "&lt;i&gt;"
