"""Loading models: bundled ones, local folders, the hub."""
