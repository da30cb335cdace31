"""Caption pairs: readers, concept matching, the image-level split, prompts."""
