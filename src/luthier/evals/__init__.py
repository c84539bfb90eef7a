"""How good an answer is: metrics, evaluation of a model on records, retention."""
