"""Diffusion models: latents, noise levels, rollouts of samples."""
