"""Caption pairs: dataset readers, concepts in text, the split by image, and prompts."""
