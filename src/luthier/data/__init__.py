"""Records, rendering and masks, splits, the doctor: from the user's file to token rows."""
