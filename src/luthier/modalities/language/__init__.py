"""Language models: tokens, references, answers, rollouts."""
