"""What an erasure did to CLIP: zero-shot, retrieval, drift, and pictures of them."""
