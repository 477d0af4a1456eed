"""Whether a model makes sense of its images."""
