"""A local page for trying out an erasure."""
