"""The layer, folded into those around it."""
