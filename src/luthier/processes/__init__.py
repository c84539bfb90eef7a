"""Processes of runs: the worker, the fork server, torchrun, who starts them."""
