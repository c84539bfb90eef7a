"""Shapes of records with several judged answers, one file each."""
