"""Which data are trained on: `rows` chooses among an update's candidates, `records` within a data set beforehand.

To add a selector: `rows/name.py` with one class `Name(Selector)` (copy `max_loss.py`), a paragraph in
`docs/select.md`, a test. This room imports `models`, `data` and level 0 only.
"""
