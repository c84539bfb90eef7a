"""Rollouts: strategies request answers to prompts, rewards judge them, advantages credit their tokens."""
