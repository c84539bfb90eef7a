"""What a step of a pipeline can do: one file per verb."""
