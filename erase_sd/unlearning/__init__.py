"""From caption pairs to an erased text encoder."""
