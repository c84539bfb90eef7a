import io

from rich.console import Console

from luthier.compare.plan import plan
from luthier.compare.progress import ConsoleWatcher


def watch(tasks, terminal):
    console = Console(file=io.StringIO(), width=120, force_terminal=terminal)
    with ConsoleWatcher(console, len(tasks)) as watcher:
        first, second, third = tasks
        watcher.skip(first)
        watcher.begin(second)
        watcher.update(second, None, 1.0)
        watcher.update(second, {"phase": "train", "done": 4, "total": 10, "seconds_left": 60.0}, 40.0)
        shown = watcher.bars.tasks[1].fields["left"]
        watcher.end(second, "failed", 100.0)
        watcher.begin(third)
        watcher.end(third, "done", 30.0)
    return console.file.getvalue(), shown


def test_a_line_for_each_run_and_an_estimate_of_the_whole(recipe):
    tasks = plan(recipe, methods=["sft", "dft", "asft"]).runs({})
    text, left = watch(tasks, terminal=False)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    assert lines == [
        "1/3  sft/seed-0: already done",
        "2/3  ✗ dft/seed-0: failed in 1:40",
        "3/3  ✓ asft/seed-0: done in 0:30",
    ]
    assert left == "about 2:40 left"  # 60 s of this run, and one more of 40 + 60 s
    assert "whole comparison" in watch(tasks, terminal=True)[0]


def test_finished_runs_tell_about_the_phases_to_come(recipe):
    tasks = plan(recipe, methods=["sft"], seeds=3).runs({})
    watcher = ConsoleWatcher(Console(file=io.StringIO()), 3)
    watcher.begin(tasks[0])
    watcher.end(tasks[0], "done", 100.0)
    watcher.begin(tasks[1])
    watcher.update(tasks[1], {"phase": "train", "done": 9, "total": 10, "seconds_left": 5.0}, 40.0)
    assert watcher.bars.tasks[0].fields["left"] == "1:00 left"
    assert watcher.bars.tasks[1].fields["left"] == "about 2:40 left"
