"""Figures of what an erasure changed in CLIP: t-SNE of the embeddings, and attention maps."""
