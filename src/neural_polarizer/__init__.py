"""Purify an image classifier that may carry a backdoor, with the evidence."""

__version__ = "0.1.0"
