"""A reward of one's own, in a rollout: `reward: ./digits.py`."""

from luthier.rewards.base import Reward


class Digits(Reward):
    """The share of an answer's characters that are digits."""

    def score(self, answer):
        """A number, or None where the reward says nothing; what raises or hangs is logged and counts as None."""
        return sum(letter.isdigit() for letter in answer.text) / len(answer.text) if answer.text else 0.0


if __name__ == "__main__":
    from pathlib import Path
    from tempfile import TemporaryDirectory

    from luthier.recipe import load_recipe
    from luthier.steps.run import run_recipe

    recipe = {
        "train": {"objective": "grpo"},
        "rl": {"strategy": {"group": 4}, "generate": {"max_new_tokens": 8}},
        "reward": "./digits.py",
    }
    with TemporaryDirectory() as folder:
        record = run_recipe(
            load_recipe({"extends": "small.yaml", **recipe}, base=Path(__file__).parent), Path(folder), []
        )
    print(f"{record['train']['updates']} updates, {record['train']['skipped_updates']} without a signal")
