"""A local page to try an erasure on."""
