"""Pictures of drawn digits, small image-text encoders, and arrays as PNG files."""
