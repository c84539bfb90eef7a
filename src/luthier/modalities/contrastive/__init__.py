"""Image-text encoders trained by a contrastive loss."""
