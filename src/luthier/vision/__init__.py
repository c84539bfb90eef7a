"""Images: what they are drawn from and what encodes them. Losses live in `objectives/`, samplers in `sampling/`."""
