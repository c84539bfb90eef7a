"""Every estimator solves a contextual bandit of ten prompts and five actions."""

import pytest

from luthier import parts
from support import bandit

LEARNERS = {
    "grpo": ({"kind": "grpo"}, bandit.group_norm, 1),
    "grpo, four passes": ({"kind": "grpo"}, bandit.group_norm, 4),
    "dapo": ({"kind": "grpo", "clip_high": 0.28}, bandit.group_norm, 2),
    "dr_grpo": ({"kind": "grpo", "norm": "constant", "max_length": 1}, bandit.group_centre, 2),
    "gspo": ({"kind": "grpo", "ratio": "sequence", "norm": "sequence"}, bandit.group_norm, 2),
    "cispo": ({"kind": "grpo", "surrogate": "cispo", "clip_low": 1.0, "clip_high": 4.0}, bandit.group_norm, 2),
    "rloo": ({"kind": "rloo"}, bandit.leave_one_out, 1),
    "ppo": ({"kind": "ppo"}, None, 4),
}


@pytest.mark.parametrize("name", LEARNERS)
def test_the_right_action_is_learnt(name):
    spec, advantage, passes = LEARNERS[name]
    objective = parts.build("objective", spec)
    assert bandit.play(objective, advantage, updates=0).expected_reward() < 0.1
    assert (
        bandit.play(objective, advantage, updates=160 if name == "ppo" else 80, passes=passes).expected_reward() > 0.95
    )


def test_rewards_that_say_nothing_teach_nothing():
    objective = parts.build("objective", "grpo")
    none = bandit.play(objective, lambda rewards: bandit.group_norm(rewards * 0 + 1), updates=20)
    assert none.expected_reward() == bandit.play(objective, updates=0).expected_reward()
