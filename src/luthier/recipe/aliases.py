"""Names that other tools (transformers, TRL, PEFT, axolotl) have for the keys of a recipe; errors name our key."""

from __future__ import annotations

NAMES_ELSEWHERE: dict[str, tuple[str, ...]] = {
    "model": ("model_name", "model_name_or_path", "base_model", "model_id"),
    "data.train": ("dataset", "datasets", "dataset_name", "train_dataset", "train_file", "data_path"),
    "data.validation": ("eval_dataset", "validation_file", "val_set_size", "test_size"),
    "data.max_tokens": (
        "max_length",
        "max_seq_length",
        "max_seq_len",
        "sequence_len",
        "model_max_length",
        "cutoff_len",
    ),
    "data.render": ("chat_template", "prompt_template"),
    "data.targets": ("assistant_only_loss", "completion_only_loss", "train_on_inputs"),
    "train.objective": ("loss", "loss_type", "loss_fn"),
    "train.tuner": ("peft", "peft_config", "adapter", "lora"),
    "train.tuner.r": ("lora_r", "lora_rank", "rank"),
    "train.tuner.alpha": ("lora_alpha",),
    "train.tuner.dropout": ("lora_dropout",),
    "train.tuner.targets": ("target_modules", "lora_target", "lora_target_modules"),
    "train.optimizer": ("optim",),
    "train.optimizer.lr": ("learning_rate",),
    "train.optimizer.clip": ("max_grad_norm", "gradient_clipping", "clip_grad_norm"),
    "train.optimizer.betas": ("adam_beta1", "adam_beta2"),
    "train.optimizer.eps": ("adam_epsilon",),
    "train.schedule": ("lr_scheduler", "lr_scheduler_type"),
    "train.schedule.warmup": ("warmup_ratio", "warmup_steps"),
    "train.batch.records": (
        "batch_size",
        "train_batch_size",
        "micro_batch_size",
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
    ),
    "train.batch.layout": ("packing", "sample_packing"),
    "train.precision": ("bf16", "fp16", "tf32", "torch_dtype"),
    "train.checkpointing": ("gradient_checkpointing",),
    "train.save.every": ("save_steps", "save_strategy"),
    "train.save.keep": ("save_total_limit",),
    "budget.epochs": ("num_epochs", "num_train_epochs", "n_epochs"),
    "budget.updates": ("max_steps", "total_steps", "num_steps"),
    "evaluate.metric": ("metrics", "compute_metrics", "metric_for_best_model"),
    "generate.max_new_tokens": ("max_tokens_to_generate", "max_completion_length"),
    "reward": ("reward_funcs", "reward_functions"),
    "rl.strategy.group": ("num_generations", "group_size"),
}
"""Key of a recipe → its names in other tools."""

ALIASES: dict[str, str] = {}
"""Name in another tool → key of a recipe."""
for _key, _names in NAMES_ELSEWHERE.items():
    ALIASES.update(dict.fromkeys(_names, _key))
