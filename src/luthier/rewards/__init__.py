"""How good an answer is, as a number to learn from: one file per reward; several are summed with weights."""
