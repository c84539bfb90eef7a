"""TRL's half of grpo.py, inside the environment that beside_trl.py makes: `python grpo_trl.py TASK.json`.

`GRPOTrainer` with its own defaults, except what the task fixes for both sides; gradient checkpointing is off, which
is its faster setting here.
"""

import json
import sys
from pathlib import Path

import torch
import transformers
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer
from turns import Turns


class TakeTurns(transformers.TrainerCallback):
    """One update at a time: sampling happens inside the step."""

    def __init__(self):
        self.turns, self.began, self.facts = Turns(), False, {}

    def on_step_begin(self, args, state, control, **kwargs):
        if not self.began:
            self.began = True
            self.turns.wait()

    def on_log(self, args, state, control, logs=None, **kwargs):
        if logs and "completions/mean_length" in logs:
            names = {"length": "completions/mean_length", "reward": "reward", "loss": "loss"}
            self.facts = {name: float(logs[key]) for name, key in names.items()}
            self.turns.done(**self.facts)


def letters(completions: list[str], **kwargs) -> list[float]:
    """The reward of letters.py."""
    return [float(len(set(text))) for text in completions]


def main() -> None:
    task = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(1)
    callback = TakeTurns()
    config = GRPOConfig(
        output_dir=task["folder"],
        model_init_kwargs={"dtype": "float32"},
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        num_generations=task["group"],
        per_device_train_batch_size=task["prompts"] * task["group"],
        max_completion_length=task["new"],
        max_steps=task["updates"],
        learning_rate=task["learning_rate"],
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=1.0,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = GRPOTrainer(
        model=task["model_folder"],
        reward_funcs=letters,
        args=config,
        train_dataset=Dataset.from_list([{"prompt": text} for text in task["texts"]]),
        callbacks=[callback],
    )
    trainer.train()


if __name__ == "__main__":
    main()
