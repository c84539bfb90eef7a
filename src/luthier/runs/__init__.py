"""A run in its folder: run.json, the journal of events, requests to stop."""
