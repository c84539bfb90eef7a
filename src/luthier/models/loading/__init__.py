"""Where models come from: bundled, a folder, the hub."""
