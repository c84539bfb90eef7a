"""What a resumed run keeps of the lines that it wrote before."""

from luthier.run_folder import read_jsonl
from luthier.runs.journal import Journal


def lines(*described):
    """`update 3` is update 3, `lost 3` an event with no update of its own; a step stands before a colon."""
    for one in described:
        step, _, text = one.rpartition(":")
        kind, number = text.split()
        event = {"event": "reward_failed", "record": number}
        if kind == "update":
            event = {"event": "update", "update": int(number), "updates_left": 1, "progress": 0.5}
            event |= {"loss": 1.0, "seconds": 1.0, "tokens_per_second": 1.0}
        yield {**event, **({"step": step} if step else {})}


def journal_of(folder, *described):
    journal = Journal(folder)
    for event in lines(*described):
        journal.event(event)
    return journal


def left(folder):
    return [line.get("record", line.get("update")) for line in read_jsonl(folder / "metrics.jsonl")]


def test_a_line_without_an_update_belongs_to_the_next_one(tmp_path):
    journal = journal_of(tmp_path, "lost a", "update 1", "update 2", "lost b", "lost c", "update 3", "lost d")
    journal.forget_after(2)
    assert left(tmp_path) == ["a", 1, 2]
    for event in lines("lost b", "lost c", "update 3"):
        journal.event(event)
    journal.forget_after(3)
    assert left(tmp_path) == ["a", 1, 2, "b", "c", 3]


def test_nothing_is_kept_of_a_step_that_begins_again_and_all_of_the_others(tmp_path):
    journal = journal_of(tmp_path, "one:update 1", "two:lost a", "two:update 1", "one:lost b", "two:update 2")
    journal.forget_after(0, "two")
    assert left(tmp_path) == [1, "b"]
    journal.forget_after(1, "one")
    assert left(tmp_path) == [1]
