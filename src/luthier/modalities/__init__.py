"""What differs between modalities: one folder each, behind one interface."""
