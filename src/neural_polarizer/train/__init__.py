"""Supervised training, by a recipe."""
