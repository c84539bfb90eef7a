"""Shapes of records with several judged answers to one prompt, one file each."""
