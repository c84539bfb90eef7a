"""Generation by one model, in this process or behind a server, and log-probabilities of known continuations."""
