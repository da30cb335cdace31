"""How the miniature world's models are trained and checked."""
