"""The verbs that a step of a pipeline can do, one file each."""
