"""Pictures of what an erasure did to CLIP: t-SNE and attention."""
