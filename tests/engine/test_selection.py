"""Phase 2 of the update: what counts as budget and as cost, out of memory, NaN, two ranks, nothing kept."""

from dataclasses import replace

import pytest
import torch

from engine.test_distributed import run_ranks
from luthier import parts
from luthier.conformance.tiny import tiny_rows
from luthier.conformance.training import trainer
from luthier.engine import checkpoints, selection
from luthier.engine import trainer as training
from luthier.engine.budget import Budget
from luthier.engine.distributed import World
from luthier.engine.trainer import Batching, Saving
from luthier.engine.update import NotFinite
from luthier.errors import RecipeError, RunError
from luthier.select.base import Selector, keyed_uniform

SFT = parts.build("objective", "sft")
FULL = parts.build("tuner", "full")
ADAMW = parts.build("optimizer", {"kind": "adamw", "lr": 1e-3})


def make(selector, batching=None, **more):
    defaults = {"optimizer": ADAMW, "budget": Budget("updates", 3), "selector": selector}
    return trainer(SFT, FULL, tiny_rows(16), batching or Batching(8, 10_000), **(defaults | more))


def weights(run):
    return {name: master.detach().clone() for name, master in run.masters.master.items()}


class Counting(Selector):
    """Keeps the records with the highest count of visits so far; remembers what it kept."""

    keep: float = 0.5

    class State:
        def __init__(self):
            self.kept = torch.zeros(1, dtype=torch.int64)

        def state_dict(self):
            return {"kept": self.kept}

        def load_state_dict(self, state):
            self.kept = state["kept"].clone()

    def start(self, policy):
        return Counting.State()

    def features(self, policy, batch, state):
        return {"length": torch.ones(len(batch.examples), dtype=torch.float64) * batch.ids.numel() * 0}

    def scores(self, pool):
        return pool.features["length"]

    def commit(self, kept):
        kept.state.kept += len(kept.names)


@pytest.mark.parametrize("name", ["random", "max_loss"])
def test_keeping_everything_is_plain_training_to_the_last_bit(name):
    plain, whole = make(None), make(parts.build("selector", {"kind": name, "keep": 1.0}))
    plain.train()
    whole.train()
    left, right = weights(plain), weights(whole)
    assert all(torch.equal(left[key], right[key]) for key in left)
    assert plain.position.tokens == whole.position.tokens


def test_candidates_count_as_records_kept_rows_as_tokens_and_looks_as_cost():
    events = []
    run = make(parts.build("selector", "max_loss"), budget=Budget("epochs", 1), observe=events.append)
    run.train()
    rows = tiny_rows(16)
    assert run.position.updates == 2 and run.position.records == 16
    assert run.position.looked_rows == 16 and run.position.looked_tokens == sum(len(row) for row in rows)
    assert run.position.tokens < sum(len(row) for row in rows)
    assert [event["kept"] for event in events if event["event"] == "update"] == [4, 4]
    named = [event["records"] for event in events if event["event"] == "kept"]
    assert [len(records) for records in named] == [4, 4] and set(named[0]) < {row.id for row in rows}
    assert events[-1]["looked_tokens"] == run.position.looked_tokens


def test_drawing_lots_costs_no_look():
    run = make(parts.build("selector", "random"))
    run.train()
    assert run.position.looked_rows == run.position.looked_tokens == 0


def test_a_budget_of_tokens_is_spent_on_what_is_trained():
    amount = 400
    run = make(parts.build("selector", {"kind": "random"}), budget=Budget("tokens", amount, kept=0.5))
    run.train()
    assert amount <= run.position.tokens < amount + 8 * 22
    assert run.position.records * 13 > 1.5 * amount  # about twice as many were drawn


def test_the_first_updates_train_on_everything():
    events = []
    run = make(parts.build("selector", {"kind": "max_loss", "warmup": 2}), observe=events.append)
    run.train()
    assert [event["kept"] for event in events if event["event"] == "update"] == [8, 8, 4]
    assert run.position.looked_rows == 8


def limited(monkeypatch, largest):
    from luthier.models.policy import TokenPolicy

    hidden = TokenPolicy.hidden

    def checked(self, batch):
        if batch.ids.numel() > largest:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
        return hidden(self, batch)

    monkeypatch.setattr(TokenPolicy, "hidden", checked)


def test_running_out_of_memory_does_not_select_twice(monkeypatch):
    class Careful(Counting):
        def features(self, policy, batch, state):
            policy.hidden(batch)
            return super().features(policy, batch, state)

    chosen = []
    choose = selection.choose
    monkeypatch.setattr(selection, "choose", lambda *arguments: chosen.append(choose(*arguments)) or chosen[-1])
    limited(monkeypatch, 50)
    events = []
    run = make(Careful(), Batching(8, 400), observe=events.append)
    run.train()
    assert [event["tokens"] for event in events if event["event"] == "micro"] == [200, 100, 50]
    assert len(chosen) == 3 and int(run.selection.state.kept) == 12


def test_memory_that_runs_out_in_the_backward_trains_on_what_was_kept_before(monkeypatch):
    chosen, trained = [], []
    choose = selection.choose
    monkeypatch.setattr(selection, "choose", lambda *arguments: chosen.append(choose(*arguments)) or chosen[-1])
    run = make(Counting(), budget=Budget("updates", 1))
    run_update = training.run_update

    def once(policy, objective, tuners, masters, update, **settings):
        trained.append([row.id for row in update.rows])
        if len(trained) == 1:
            raise torch.OutOfMemoryError("no")
        return run_update(policy, objective, tuners, masters, update, **settings)

    monkeypatch.setattr(training, "run_update", once)
    run.train()
    assert len(chosen) == 1 and trained[0] == trained[1] and int(run.selection.state.kept) == 4


def test_an_update_that_is_not_finite_is_not_remembered(tmp_path):
    run = make(Counting(), saving=Saving(tmp_path), budget=Budget("updates", 3))
    run.train()
    assert int(run.selection.state.kept) == 12

    class Breaks(type(SFT)):
        def token_loss(self, view):
            return super().token_loss(view) * (float("nan") if view.update.index == 2 else 1.0)

    folder = tmp_path / "broken"
    broken = trainer(
        Breaks(), FULL, tiny_rows(16), Batching(8, 10_000), optimizer=ADAMW, budget=Budget("updates", 3),
        selector=Counting(), saving=Saving(folder),
    )  # fmt: skip
    with pytest.raises(NotFinite):
        broken.train()
    newest = checkpoints.newest(folder)
    assert newest is not None
    assert (
        int(checkpoints.load(newest).tensors["state/selector/test_selection/0/kept"]) == 4
    )  # of the first update alone


def test_a_score_that_is_no_number_names_the_record():
    class Broken(Counting):
        def scores(self, pool):
            return torch.tensor([0.0] * 7 + [float("nan")])[: len(pool.names)]

    with pytest.raises(RunError, match=r"no finite score for record-\d+ \(update 1\)"):
        make(Broken()).train()


def test_scores_of_another_shape_are_refused():
    class Short(Counting):
        def scores(self, pool):
            return pool.uniform.mean()

    with pytest.raises(RecipeError, match="one value per candidate"):
        make(Short()).train()


def test_nothing_kept_is_an_error():
    class Nothing(Counting):
        def chosen(self, scores):
            return []

    with pytest.raises(RunError, match="kept none of the 8 candidates of update 1"):
        make(Nothing()).train()


def test_of_equals_the_first_are_kept_in_data_order():
    assert Counting().chosen(torch.tensor([1.0, 2.0, 2.0, 2.0])) == [1, 2]
    assert Counting(keep=0.01).chosen(torch.tensor([1.0, 2.0, 3.0])) == [2]
    assert Counting(keep=0.5).chosen(torch.zeros(5)) == [0, 1, 2]


def pair(name, lengths=(8, 12)):
    rows = [tiny_rows(16)[index] for index in lengths]
    return [replace(row, id=f"{name}/{index}", record=name) for index, row in enumerate(rows)]


def test_a_pair_is_one_candidate_and_a_record_drawn_twice_is_two():
    first, second, single = pair("one"), pair("other"), tiny_rows(1)
    grouped = selection.group_drawn([*first, *single, *single, *second, *second])
    assert [[row.id for row in record_rows] for record_rows in grouped] == [
        ["one/0", "one/1"],
        ["record-0"],
        ["record-0"],
        ["other/0", "other/1"],
        ["other/0", "other/1"],
    ]


def test_pairs_are_kept_whole_by_the_mean_of_their_rows():
    rows = [row for name in ("a", "b", "c", "d") for row in pair(name)]
    rows_by_record = selection.group_drawn(rows)
    values = [1.0, 9.0, 6.0, 6.0, 0.0, 8.0, 7.0, 5.0]  # means 5, 6, 4, 6
    features = [{"length": torch.tensor(value)} for value in values]
    kept = selection.choose(Counting(), Counting.State(), rows_by_record, features, 0, 1)
    assert [row.id for row in kept] == ["b/0", "b/1", "d/0", "d/1"]


def test_keyed_numbers_are_uniform_and_depend_on_the_key_alone():
    names = [f"record-{index}" for index in range(4000)]
    drawn = keyed_uniform(0, 1, names)
    assert abs(float(drawn.mean()) - 0.5) < 0.02 and float(drawn.min()) >= 0 and float(drawn.max()) < 1
    assert torch.equal(keyed_uniform(0, 1, names[10:20]), drawn[10:20])
    assert not torch.equal(keyed_uniform(0, 2, names), drawn)
    assert not torch.equal(keyed_uniform(1, 1, names), drawn)


def test_alone_a_rank_gathers_its_own():
    assert World().gather({"a": 1}) == [{"a": 1}]


CHILD = """
import sys, torch
from luthier import parts
from luthier.engine.distributed import World
from luthier.engine.trainer import Batching
from luthier.conformance.selector import CANDIDATES, _noted, _selecting
torch.set_num_threads(1)
world = World.join()
kept = {}
for entry in parts.catalogue("selector"):
    selector = parts.load("selector", entry.name)(**entry.constants["SETTINGS"][0])
    kept[entry.name] = _noted(_selecting(selector, Batching(CANDIDATES, 40), world=world))
torch.save(kept, f"{sys.argv[1]}/{world.rank}.pt")
torch.distributed.destroy_process_group()
"""


def test_two_processes_keep_what_one_keeps(tmp_path):
    from luthier.conformance.selector import CANDIDATES, kept_records

    ranks = run_ranks(CHILD, tmp_path)
    for entry in parts.catalogue("selector"):
        selector = parts.load("selector", entry.name)(**entry.constants["SETTINGS"][0])
        whole = kept_records(selector, Batching(CANDIDATES, 40))
        assert all(rank[entry.name] == whole for rank in ranks), entry.name
