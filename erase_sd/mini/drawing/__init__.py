"""How the miniature world is drawn, with Pillow."""
