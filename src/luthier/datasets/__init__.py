"""Generated data sets: a seed decides the records, a program checks the answers; `{kind: orders, count: 400}`."""
