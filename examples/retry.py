"""A strategy of one's own: `rl: {strategy: ./retry.py}`. Tested by `luthier check ./retry.py`."""

from typing import ClassVar

from luthier.rollouts.base import Group, Strategy


class Retry(Strategy):
    """Asks again where no answer to a prompt earned anything; all answers make one group."""

    SETTINGS: ClassVar = ({}, {"group": 3})

    group: int = 2

    def rounds(self, prompt, ctx):
        """A generator: ask for answers, get them judged, ask again or return groups."""
        scored = yield [prompt.request() for _ in range(self.group)]
        if not any(one.reward for one in scored):
            scored += yield [prompt.request() for _ in range(self.group)]
        return [Group(prompt, tuple(scored))]


if __name__ == "__main__":
    from pathlib import Path
    from tempfile import TemporaryDirectory

    from luthier.recipe import load_recipe
    from luthier.steps.run import run_recipe

    recipe = {
        "train": {"objective": "grpo"},
        "rl": {"strategy": "./retry.py", "generate": {"max_new_tokens": 8}},
        "reward": "./digits.py",
    }
    with TemporaryDirectory() as folder:
        record = run_recipe(
            load_recipe({"extends": "small.yaml", **recipe}, base=Path(__file__).parent), Path(folder), []
        )
    print(f"{record['train']['updates']} updates, {record['train']['skipped_updates']} without a signal")
