"""TRL's half of trl_sft.py, run inside the environment that trl_sft.py makes: `python trl_side.py TASK.json`.

Full fine-tuning by `SFTTrainer` with its own defaults, except what the task fixes for both sides.
"""

import json
import sys
import time
from pathlib import Path

import torch
import transformers
import trl
from datasets import load_dataset
from trl import SFTConfig, SFTTrainer


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


def main() -> None:
    task = json.loads(Path(sys.argv[1]).read_text())
    clock = Clock()
    config = SFTConfig(
        output_dir=task["folder"],
        model_init_kwargs={"dtype": "float32"},  # with bf16=True: the master weights stay float32, as on our side
        bf16=task["precision"] == "bfloat16",
        use_cpu=True,
        gradient_checkpointing=task["checkpointing"],
        completion_only_loss=True,
        max_length=task["max_tokens"],
        per_device_train_batch_size=task["batch"],
        num_train_epochs=1,
        learning_rate=task["learning_rate"],
        lr_scheduler_type="constant",
        weight_decay=0.0,
        adam_beta1=task["betas"][0],
        adam_beta2=task["betas"][1],
        max_grad_norm=task["clip"],
        train_sampling_strategy="sequential",
        seed=task["seed"],
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = SFTTrainer(
        model=task["model"],
        args=config,
        train_dataset=load_dataset("json", data_files=task["ordered_data"], split="train"),
        callbacks=[clock],
    )
    trainer.train()
    rows = trainer.train_dataset
    Path(task["result"]).write_text(
        json.dumps(
            {
                "began": clock.began,
                "update_times": clock.times,
                "losses": clock.losses,
                "tokens": sum(len(row["input_ids"]) for row in rows),
                "target_tokens": sum(label != -100 for row in rows for label in row["labels"][1:]),
                "stored_dtype": str(next(trainer.model.parameters()).dtype),
                "versions": {
                    "trl": trl.__version__,
                    "transformers": transformers.__version__,
                    "torch": torch.__version__,
                },
                "threads": torch.get_num_threads(),
            }
        )
    )


if __name__ == "__main__":
    main()
