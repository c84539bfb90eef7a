import io
import json
from types import SimpleNamespace

import pytest
from rich.console import Console

from luthier.data.doctor import examine, print_preview, print_report
from luthier.data.render import Renderer
from luthier.data.report import grouped


def settings(**changes):
    defaults = {"train": "data.jsonl", "validation": None, "test": None, "split_seed": 0, "max_tokens": 120}
    return SimpleNamespace(**(defaults | {"too_long": "error", "deduplicate": True, "group_by": None} | changes))


def line(index, answer="Yes."):
    return json.dumps({"prompt": f"question {index} of {index * 7919 % 1009}", "completion": answer}).encode()


@pytest.fixture
def bad(tmp_path):
    refused = {"messages": [{"role": "system", "content": "a"}, {"role": "assistant", "content": "b"}]}
    lines = [line(index) for index in range(60)]
    lines += [b"{", line(100, answer=""), b'{"text": "\xff"}', json.dumps(refused).encode(), line(101, "Yes. " * 99)]
    (tmp_path / "data.jsonl").write_bytes(b"\n".join([*lines, line(0)]))
    return tmp_path


def printed(show, *args, **options):
    screen = io.StringIO()
    show(*args, Console(file=screen, width=200, **options))
    return screen.getvalue()


def test_every_bad_record_is_listed_and_the_rest_examined(bad, make_tokenizer):
    report = examine(settings(), Renderer(make_tokenizer("gemma")), bad)
    origins = {kind: [problem.origin for problem in problems] for kind, problems in report.problems.items()}
    lines = {"unreadable": 61, "empty": 62, "not_utf8": 63, "unrendered": 64}
    assert origins == {kind: [f"data.jsonl:{number}"] for kind, number in lines.items()}
    assert report.counts["train"] == 60 and report.dropped == {"train": 1} and report.duplicates == 1
    assert len(report.warnings) >= 5


def test_the_report_is_printed_with_problems_and_warnings(bad, make_tokenizer):
    report = examine(settings(), Renderer(make_tokenizer("gemma")), bad)
    text = printed(print_report, report)
    for words in ("63 records", "data.jsonl:63", "not UTF-8", "duplicates", "1 exact", "targets", "warning", "⟦Yes."):
        assert words in text
    assert json.dumps(report.to_json())


def test_what_makes_training_impossible_is_the_first_warning(tmp_path, make_tokenizer):
    (tmp_path / "data.jsonl").write_bytes(b"{\n{\n")
    report = examine(settings(), Renderer(make_tokenizer("chatml")), tmp_path)
    assert "training data is empty" in report.warnings[0] and len(report.problems["unreadable"]) == 2
    (tmp_path / "data.jsonl").write_bytes(line(1))
    report = examine(settings(max_tokens=4), Renderer(make_tokenizer("chatml")), tmp_path)
    assert "No training record is left" in report.warnings[0]
    assert "No training record" in printed(print_report, report)
    missing = examine(settings(train="none.jsonl"), Renderer(make_tokenizer("chatml")), tmp_path)
    assert "no file" in missing.problems["source"][0].message and "empty" in missing.warnings[0]


def test_a_warning_keeps_within_the_width(bad, make_tokenizer):
    report = examine(settings(), Renderer(make_tokenizer("chatml")), bad).known(sources=["word " * 40])
    assert "warning word" in (text := printed(print_report, report))
    assert max(len(line) for line in text.splitlines() if "word word" in line) <= 200


def test_a_complaint_about_every_record_is_made_once_with_what_to_do(tmp_path, make_tokenizer):
    lines = ["question,answer", *(f"what is {number} + 1,{number + 1}" for number in range(300))]
    (tmp_path / "data.csv").write_text("\n".join(lines) + "\n")
    report = examine(settings(train="data.csv"), Renderer(make_tokenizer("chatml")), tmp_path)
    assert {kind: len(errors) for kind, errors in report.problems.items()} == {"shape": 300}
    text = printed(print_report, report)
    assert text.count("no known shape. Columns found: question, answer") == 1
    assert "300 × data.csv:2, data.csv:3 and 298 more: no known shape" in text
    assert report.problems["shape"][0].hint.endswith("`columns: {prompt: question, completion: answer}`.")


def test_lines_in_another_encoding_are_one_complaint(tmp_path, make_tokenizer):
    lines = [json.dumps({"prompt": "x" * n, "completion": sign}, ensure_ascii=False) for n, sign in enumerate("äöüßéñ")]
    (tmp_path / "data.jsonl").write_bytes("\n".join(lines).encode("latin-1"))
    report = examine(settings(), Renderer(make_tokenizer("chatml")), tmp_path)
    text = printed(print_report, report)
    assert "6 × data.jsonl:1" in text and text.count("iconv -f LATIN1") == 1


def test_what_stops_everything_is_not_said_twice(tmp_path, make_tokenizer):
    (tmp_path / "data.csv").write_text("question,answer\nWho?,Ann\nWhere?,Here\n")
    report = examine(settings(train="data.csv"), Renderer(make_tokenizer("chatml")), tmp_path)
    text = printed(print_report, report)
    assert "The training data is empty" not in text and "Name yours" not in text


def test_complaints_that_differ_are_told_apart_and_the_rest_is_counted(tmp_path, make_tokenizer):
    refused = [{"messages": [{"role": f"r{number % 12}", "content": "x"}]} for number in range(20)]
    text = "".join(json.dumps(record) + "\n" for record in refused)
    (tmp_path / "data.jsonl").write_text(text + line(0).decode() + "\n")
    report = examine(settings(), Renderer(make_tokenizer("chatml")), tmp_path)
    complaints = grouped(next(iter(report.problems.values())))
    assert [len(complaint.origins) for complaint in complaints] == [2] * 8 + [1] * 4
    assert "  ... and 2 more" in printed(print_report, report)


def test_targets_are_green_or_between_marks():
    preview = [("<user>\n", False), ("hi", False), ("yes", True), ("</s>", True)]
    uncoloured = printed(print_preview, preview)
    assert "⏎\nhi⟦yes</s>⟧" in uncoloured
    coloured = printed(print_preview, preview, force_terminal=True, color_system="standard")
    assert ("⟦" not in coloured and "\x1b[32myes" in coloured) or "\x1b[1;32myes" in coloured


def test_a_long_preview_is_shortened_in_the_middle():
    preview = [(f" t{index}", index > 900) for index in range(1000)]
    text = printed(print_preview, preview)
    assert " t0 " in text and "t999⟧" in text and "[... 400 tokens ...]" in text and "t500" not in text


def test_text_that_looks_like_markup_is_shown_as_it_is():
    assert "[bold]x[/bold]" in printed(print_preview, [("[bold]x[/bold]", True)])


def test_records_that_are_too_long_are_not_told_to_raise_a_limit_that_the_model_has(tmp_path, make_tokenizer):
    rows = [{"prompt": f"{n} " + "word " * 2000, "completion": "yes"} for n in range(9)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = examine(settings(), Renderer(make_tokenizer("chatml")), tmp_path)
    assert "if the model reads more" in report.fault[1]
