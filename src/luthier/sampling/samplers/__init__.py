"""Samplers: the parts behind `sampler:` in a recipe, which choose the model that writes the answers of a step."""
