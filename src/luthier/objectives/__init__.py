"""What is minimised: one file per loss.

To add one: a file `objectives/**/name.py` with one class `Name(TokenObjective)` or `Name(SequenceObjective)`
(copy `supervised/dft.py`), a page `docs/methods/name.md`, a test. Nothing is registered.

An objective knows tensors, never a model: `token_loss(view) -> [n]` sees one chunk of target positions.
The engine divides by the global count of UNIT, so the gradient cannot depend on how an update was split.
This room imports `models`, `data` and level 0 only.
"""
