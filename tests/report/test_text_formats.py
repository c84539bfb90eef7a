import csv
import io
import re

from luthier.report.html import to_html
from luthier.report.numbers import latex_text
from luthier.report.text_formats import to_csv, to_latex, to_markdown, to_setup


def test_csv_reads_back_with_plain_numbers(several, single):
    for results in (several, single):
        lines = list(csv.DictReader(io.StringIO(to_csv(results))))
        assert [line["row"] for line in lines] == ["base", "sft", "dft", "asft"]
        for line, row in zip(lines, results["rows"], strict=True):
            assert line["target_mean"] == ("" if row["target"] is None else str(row["target"]["mean"]))
    assert lines[2]["failed_runs"] == "1"


def test_markdown_keeps_its_table_whatever_the_names(hostile):
    text = to_markdown(hostile)
    table = [line for line in text.splitlines() if line.startswith("| ")]
    bars = {len(re.findall(r"(?<!\\)\|", line)) for line in table}
    assert len(table) == 6 and bars == {10}
    assert "<b>" not in text


def test_latex_escapes_and_balances(hostile, several):
    for results in (hostile, several):
        text = to_latex(results)
        body = [line for line in text.splitlines() if line.endswith("\\\\")]
        assert {len(re.findall(r"(?<!\\)&", line)) for line in body} == {8}
        assert len(re.findall(r"(?<!\\)\{", text)) == len(re.findall(r"(?<!\\)\}", text))
        assert len(re.findall(r"(?<!\\)\$", text)) % 2 == 0
        assert not re.search(r"[^\x00-\x7f]", text)
    assert r"$\pm$" in to_latex(several)
    assert latex_text("--seeds 3") == "-{}-seeds 3"


def test_setup_says_what_others_need(several):
    text = to_setup(several)
    for words in (
        "sha256",
        "torch",
        "2.13.0",
        "learning rate",
        "train.objective.kind",
        "epochs 1",
        "records test",
        '"seed": 0',
    ):
        assert words in text.replace("\\", ""), words


def test_tokens_beside_training_have_a_column_where_there_are_any(several, spending):
    assert "other tok" not in to_markdown(several) and "other tok" not in to_html(several)
    changed = spending
    shown = [line.split(" | ") for line in to_markdown(changed).splitlines() if line.startswith("| ")]
    assert shown[0][6] == "other tok" and [cells[6] for cells in shown[2:]] == ["–", "–", "1,234,567", "–"]
    assert len({len(cells) for cells in shown}) == 1
    assert "tokens scored to select rows, or generated; outside the budget: dft 1,234,567." in to_markdown(changed)
    assert "1,234,567" in to_html(changed)
    line = list(csv.DictReader(io.StringIO(to_csv(changed))))[2]
    assert (line["looked_tokens"], line["generated_tokens"]) == ("1200000", "34567")


def test_no_cell_is_a_formula_for_a_table_program(single):
    rows = [{**row, "label": f"{sign}1+1"} for row, sign in zip(single["rows"], "=+-@", strict=True)]
    lines = list(csv.DictReader(io.StringIO(to_csv({**single, "rows": rows}))))
    assert [line["row"] for line in lines] == ["'=1+1", "'+1+1", "'-1+1", "'@1+1"]
    assert {line["target_mean"][:1] for line in lines} <= {"", "0", "1"}  # numbers stay as they are


def test_names_of_further_numbers_are_text_and_nothing_runs(single):
    rows = [{**row, "further": {"<script>x</script>": 0.5}} for row in single["rows"]]
    page = to_html({**single, "rows": rows})
    assert "<script" not in page and "&lt;script&gt;" in page
    assert "default-src 'none'" in page[: page.index("<title>")]
