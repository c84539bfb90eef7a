"""`luthier check-templates`."""

RIGHT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{% for c in m.tool_calls or [] %}"
    "<call>{{ c.function | tojson }}</call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_a_folder_of_templates_gives_a_table_and_what_is_not_right(command, tmp_path):
    (tmp_path / "good.jinja").write_text(RIGHT)
    (tmp_path / "silent.jinja").write_text("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}")
    shown = command("check-templates", str(tmp_path))
    table = {line[:18].strip(): line.split()[-5:] for line in shown.out.splitlines() if line[-1:].isdigit()}
    kinds = ("single", "multi", "system", "tools", "string arguments", "ends in a call", "text and call", "two calls")
    assert [table[kind] for kind in kinds] == [["1", "0", "0", "0", "1"]] * len(kinds)
    assert table["thoughts"] == ["0", "0", "0", "0", "2"]
    assert "good  thoughts: not written" in shown.out and "good  tools" not in shown.out
    assert "silent  single: not written. The model's chat template writes an answer 0 times" in shown.out
    assert shown.code == 0


def test_a_model_is_told_kind_by_kind(command):
    shown = command("check-templates", "nano")
    assert "nano  multi: right" in shown.out and "nano  tools: not written. tool calls that" in shown.out
    assert shown.code == 0


def test_a_wrong_mask_is_a_failure(command, tmp_path, monkeypatch):
    from luthier.data.render import Renderer

    (tmp_path / "good.jinja").write_text(RIGHT)
    tokenised = Renderer._tokenised

    def everything(self, record, rendered):
        rendering = tokenised(self, record, rendered)
        rendering.row.streams["weights"].values[:] = 1
        return rendering

    monkeypatch.setattr(Renderer, "_tokenised", everything)
    shown = command("check-templates", str(tmp_path))
    assert shown.code == 1 and "good  single: wrong. a word of another message is a target" in shown.out


def test_a_folder_without_templates_is_named(command, tmp_path):
    shown = command("check-templates", str(tmp_path))
    assert shown.code == 2 and str(tmp_path) in shown.error
