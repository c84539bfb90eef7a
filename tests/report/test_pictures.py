"""Samples that are pictures: a table that holds them itself."""

from luthier.report.html import to_html
from luthier.report.side_by_side import gallery, is_drawn, picture, sample_block

SEEN = "data:image/png;base64,AAAA"


def sample(drawn=True):
    asked = {"set": "target", "id": "one", "prompt": "label <3>", "reference": "", "pictures": {"reference": SEEN}}
    one = {"seed": 0, "prediction": "digit 0.91", "right": True, "finish": None, "picture": SEEN if drawn else None}
    outputs = [{**one, "label": label, "score": score} for label, score in (("base", 0.25), ("nft", 0.91))]
    return {**asked, "outputs": outputs}


def test_a_column_for_each_record_and_a_row_for_each_model():
    text = gallery([sample(), sample()], {"nft": "var(--series-00)"})
    assert text.count("<tr>") == 4 and text.count("<img") == 6 and text.count("0.91</small>") == 2
    assert "label &lt;3&gt;" in text and text.count(f'src="{SEEN}"') == 6


def test_only_pictures_that_the_page_holds_are_shown():
    assert picture("http://elsewhere/x.png", "x") == picture(None, "x") == picture("javascript:x", "x") == ""
    assert is_drawn(sample()) and not is_drawn(sample(drawn=False))


def test_a_prompt_may_be_a_picture():
    one = sample(drawn=False)
    one["pictures"] = {"prompt": SEEN}
    assert f'src="{SEEN}"' in sample_block(one, {})


def test_the_page_shows_them_and_further_numbers(single):
    results = {**single, "samples": [sample()], "counts": "records"}
    results["rows"] = [{**row, "perplexity": None, "further": {"flow loss": 0.345}} for row in single["rows"]]
    page = to_html(results)
    assert "Samples side by side" in page and page.count('class="picture"') == 3
    assert "flow loss" in page and "0.<wbr>345" in page and "<th>perplexity</th>" not in page and "records/s" in page
    assert "Samples side by side" not in to_html(single) and "<th>perplexity</th>" in to_html(single)
