"""What is trained and how it is parameterised: one file per tuner.

To add one: `tuners/name.py` with one class `Name(Tuner)` (copy `lora.py`), a page `docs/methods/name.md`,
a test. `plan` may read data and seeds; `apply` is deterministic and alone is replayed on load. This room
imports `models`, `data` and level 0 only.
"""
