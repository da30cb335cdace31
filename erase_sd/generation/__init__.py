"""Images of the original and of the erased model, from the same noise."""
