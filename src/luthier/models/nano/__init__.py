"""nano: our own tiny Llama-architecture language model. This folder is its model folder; see docs/nano.md."""
