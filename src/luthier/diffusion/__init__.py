"""Denoisers: noise levels, their policy, networks. Losses live in `objectives/flow`, solvers in `sampling/`."""
