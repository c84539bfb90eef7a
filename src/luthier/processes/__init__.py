"""The processes of runs: the worker, the fork server, torchrun, and how they are started."""
