"""TRL's half of beside_trl.py, run inside the environment that it makes: `python trl_side.py TASK.json`.

Full fine-tuning by `SFTTrainer` or `DPOTrainer` with their own defaults, except what the task fixes for both sides.
"""

import json
import sys
import time
from pathlib import Path

import torch
import transformers
import trl
from datasets import load_dataset
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer


class Clock(transformers.TrainerCallback):
    """When training began and when each update ended."""

    def __init__(self):
        self.times, self.losses = [], []

    def on_train_begin(self, args, state, control, **kwargs):
        self.began = time.time()

    def on_step_end(self, args, state, control, **kwargs):
        self.times.append(time.time())

    def on_log(self, args, state, control, logs=None, **kwargs):
        if logs and "loss" in logs:
            self.losses.append(float(logs["loss"]))


def settings(task: dict) -> dict:
    """What both trainers are told."""
    return {
        "output_dir": task["folder"],
        # with bf16=True: the master weights stay float32, as on our side
        "model_init_kwargs": {"dtype": "float32"},
        "bf16": task["precision"] == "bfloat16",
        "use_cpu": True,
        "gradient_checkpointing": task["checkpointing"],
        "max_length": task["max_tokens"],
        "per_device_train_batch_size": task["batch"],
        "num_train_epochs": 1,
        "learning_rate": task["learning_rate"],
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "adam_beta1": task["betas"][0],
        "adam_beta2": task["betas"][1],
        "max_grad_norm": task["clip"],
        "train_sampling_strategy": "sequential",
        "seed": task["seed"],
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def make_trainer(task: dict, clock: Clock) -> transformers.Trainer:
    rows = load_dataset("json", data_files=task["ordered_data"], split="train")
    given = {"model": task["model_folder"], "train_dataset": rows, "callbacks": [clock]}
    if task["theirs"] == "dpo":
        return DPOTrainer(args=DPOConfig(precompute_ref_log_probs=True, **settings(task)), **given)
    loss = "dft" if task["theirs"] == "dft" else "nll"
    return SFTTrainer(args=SFTConfig(completion_only_loss=True, loss_type=loss, **settings(task)), **given)


def tokens_of(rows, theirs: str) -> dict[str, int]:
    """All tokens and targets; a pair's prompt counts for each of its answers."""
    if theirs == "dpo":
        answers = sum(len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in rows)
        return {"tokens": answers + 2 * sum(len(row["prompt_ids"]) for row in rows), "target_tokens": answers}
    targets = sum(label != -100 for row in rows for label in row["labels"][1:])
    return {"tokens": sum(len(row["input_ids"]) for row in rows), "target_tokens": targets}


def main() -> None:
    task = json.loads(Path(sys.argv[1]).read_text())
    clock = Clock()
    trainer = make_trainer(task, clock)
    trainer.train()
    found = {
        "began": clock.began,
        "update_times": clock.times,
        "losses": clock.losses,
        **tokens_of(trainer.train_dataset, task["theirs"]),
        "stored_dtype": str(next(trainer.model.parameters()).dtype),
        "versions": {"trl": trl.__version__, "transformers": transformers.__version__, "torch": torch.__version__},
        "threads": torch.get_num_threads(),
    }
    Path(task["result"]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
