"""Who answers: the parts behind `sampler:` in a recipe."""
