"""A run in its folder: run.json, the journal of events, and requests to stop."""
