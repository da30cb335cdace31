"""Images of the original and the erased model from the same noise."""
