"""Models in the formats in which people deploy."""
