"""Tiny rows of each form of judged answers that objectives NEED, one file each: `rows`, and `checks` if any."""
