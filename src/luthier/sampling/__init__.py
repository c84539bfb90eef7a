"""One continuation of one state by one policy: native generation and the scoring of given continuations."""
