"""Data selection: `rows` has selectors of an update's candidates, `records` subsets of a data set before training.

To add a selector: `rows/name.py` with one class `Name(Selector)` (copy `max_loss.py`), a paragraph in
`docs/select.md`, a test. This package imports `models`, `data` and level 0 only.
"""
