"""What an erasure changed in CLIP: zero-shot, retrieval and drift measures, and figures of them."""
