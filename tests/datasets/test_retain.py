from luthier.datasets.retain import Retain
from luthier.parts import build


def test_every_record_names_its_metric_and_every_choice_holds_the_answer():
    records = Retain().records()
    assert len(records) > 100
    assert len({record.fields["prompt"] for record in records}) == len(records)
    for record in records:
        build("metric", record.fields["metric"])
        if record.fields["metric"] == "choice":
            choices = record.fields["choices"]
            assert choices.count(record.fields["completion"]) == 1
            assert len(set(choices)) == len(choices) >= 2
        else:
            assert float(record.fields["completion"]) >= 0


def test_a_part_of_it_is_a_subset_that_the_seed_chooses():
    everything = {record.fields["prompt"] for record in Retain().records()}
    some, others = ({r.fields["prompt"] for r in Retain(count=30, seed=seed).records()} for seed in (0, 1))
    assert len(some) == len(others) == 30
    assert some < everything and others < everything and some != others


def test_sums_are_right():
    for record in Retain().records():
        if record.fields["topic"] == "sums":
            first, second = record.fields["prompt"].removeprefix("What is ").rstrip("?").split(" + ")
            assert int(first) + int(second) == int(record.fields["completion"])
