"""Keyed numbers are those that recorded results were made with: every value here is one of before they had one home."""

import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch

from luthier import keyed
from luthier.data.batches import collate, data_order, mismatched
from luthier.datasets.base import belongs
from luthier.models.context import same_draws
from luthier.objectives._draws import position_keys
from luthier.objectives.base import Update
from luthier.objectives.diffusion import _draws
from luthier.rollouts.base import Context
from luthier.select.base import keyed_uniform
from luthier.select.records.grape import Grape
from luthier.select.records.right import Right
from luthier.select.records.s2l import S2L
from luthier.types import Candidate, Record, Row, Stream

PACKAGE = Path(keyed.__file__).parent


def row(name, first):
    weights = Stream(numpy.array([0, 0, 1, 1], dtype=numpy.float32), "token")
    return Row(name, numpy.array([first, 7, 8, 9], dtype=numpy.int32), {"weights": weights})


@pytest.fixture
def rows():
    return [row(f"r{index}", index) for index in range(6)]


def test_each_function_gives_the_number_it_has_always_given():
    assert keyed.hash64(5, "rec/9") == 1297905438445264071
    assert keyed.seed63(5, "step", "rec/9", 2) == 748123261918260249
    assert keyed.seed56("3/4/a") == 45676574885760321
    assert keyed.hash64("naïve", byteorder="big") == 13759174791853198556
    assert keyed.order(b"abc").hex() == "d8bb14d833d59559"
    assert keyed.uniform53(7, 3, "a").hex() == "0x1.7b24b3e9b0fc8p-3"
    assert keyed.sha256_number("4:k", 7) / 2**56 == 0.5442649308699914
    assert keyed.sha256_number("0:é", 7) / 2**56 == 0.8991230170588607


def test_the_functions_are_readings_of_one_hash():
    for index in range(50):
        number = keyed.hash64(index, "x")
        assert keyed.hash64(f"{index}/x") == number == keyed.signed64(index, "x") % 2**64
        assert keyed.seed63(index, b"x") == number // 2 and keyed.uniform53(index, "x") == (number >> 11) / 2**53
        assert keyed.order(index, "x") == number.to_bytes(8, "little")


def test_orders_stay(rows):
    assert data_order([f"r{index}" for index in range(8)], 3, 1) == [5, 3, 6, 7, 1, 2, 0, 4]
    firsts = {name: int(other.ids[0]) for name, other in mismatched(rows, "k").items()}
    assert firsts == {"r0": 4, "r1": 2, "r2": 0, "r3": 1, "r4": 5, "r5": 3}
    points = numpy.arange(24).reshape(12, 2) % 5 * 1.0
    assert S2L(clusters=3).pick(points, [f"n{index}" for index in range(12)], 5, 9) == [0, 10, 6, 11, 2]


def test_choices_and_splits_stay(rows):
    answers = [row(f"q{index // 3}/{index}", index % 6) for index in range(12)]
    records = [Record(f"q{index // 3}", "prompt_completion", {}, "o") for index in range(12)]
    candidates = [Candidate(record, one, "t", "gen", 1.0) for record, one in zip(records, answers, strict=True)]
    assert Right().choose(candidates, {}, 5) == [0, 5, 7, 11]
    scores = [Grape(by="random")._score(one, [0] * 4, 5) for one in answers[:3]]
    assert scores == [2812697665720777728.0, 13385115342268594176.0, 8387629857483455488.0]
    assert [index for index in range(30) if belongs(str(index), "test")] == [11, 13, 14, 20]


def test_draws_stay(rows):
    assert keyed_uniform(7, 3, ["a", "b/1", "é"]).tolist() == [
        float.fromhex(text) for text in ("0x1.7b24b3e9b0fc8p-3", "0x1.f4c7c3d230949p-1", "0x1.38581523f71b6p-1")
    ]
    drawn = _draws.uniform(Update(2, 7), ["a", "é"], 1, 2, torch.device("cpu")).flatten().tolist()
    expected = ("0x1.7052e8dc97436p-3", "0x1.7bb094986c923p-2", "0x1.919a06376d378p-1", "0x1.cfea44b48f007p-2")
    assert [number.hex() for number in drawn] == list(expected)
    keys = [-7992990190324482738, 992550265709473238, -6295556511980858310, 7305071340534679763]
    assert position_keys(collate(rows[:2])).tolist() == keys
    assert Context((1, 2, "a", 0), 0.0, None, None, frozenset(), 1).seed(3, -1) == 4282353473441622094
    with same_draws("3/4/a", torch.device("cpu")):
        assert torch.initial_seed() == 45676574885760321


def test_no_other_file_makes_a_number_of_a_hash():
    for path in PACKAGE.rglob("*.py"):
        assert path.name == "keyed.py" or "int.from_bytes(" not in path.read_text(encoding="utf-8"), path


def test_keys_need_nothing_but_the_standard_library():
    code = "import sys, runpy; runpy.run_path(sys.argv[1]); print(sorted({'numpy', 'torch'} & set(sys.modules)))"
    command = [sys.executable, "-c", code, str(PACKAGE / "keyed.py")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "[]"
