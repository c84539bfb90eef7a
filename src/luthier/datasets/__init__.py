"""Data sets made from a seed, with answers that can be checked. One part per file; `{kind: orders, count: 400}`."""
