"""From the file of a user to batches of token rows: sources, splits, rendering with masks, the doctor."""
