"""Objectives, the losses that training minimises: one file per loss.

To add one: a file `objectives/**/name.py` with one class `Name(TokenObjective)` or `Name(SequenceObjective)`
(copy `supervised/dft.py`), a page `docs/methods/name.md`, a test. Nothing is registered.

An objective reads tensors and never a model: `token_loss(view) -> [n]` gets one chunk of target positions.
The engine divides by the global count of UNIT, so the gradient cannot depend on how an update was split.
This package imports `models`, `data` and level 0 only.
"""
