"""Same numbers, less time or memory: the head, gradients, norms, attention and folded adapters."""
