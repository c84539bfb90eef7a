"""The benchmarks that nobody runs every day still run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parent.parent / "bench"


@pytest.mark.slow
def test_every_case_of_the_gpu_benchmark_runs_without_a_gpu(tmp_path):
    found = tmp_path / "gpu.json"
    command = [sys.executable, str(BENCH / "gpu.py"), "--tiny", "--device", "cpu", "--output", str(found)]
    # without luthier on the path: the script finds the source beside it
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr
    cases = json.loads(found.read_text())["cases"]
    assert len(cases) == 3 * 4 + 2
    assert [case for case in cases if "error" in case or not case["tokens_per_second"] > 0] == []


@pytest.mark.slow
def test_the_table_of_chat_templates_is_made(tmp_path):
    template = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    template += "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    (tmp_path / "plain.jinja").write_text(template)
    command = [sys.executable, str(BENCH / "templates.py"), str(tmp_path)]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "| multi | 1 | 0 | 0 | 0 | 0 |" in done.stdout and "| tools | 0 | 0 | 0 | 0 | 1 |" in done.stdout
