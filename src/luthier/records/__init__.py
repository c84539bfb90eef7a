"""Records as people write them: messages, tools and columns in one form, before any template sees them."""
