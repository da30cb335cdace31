"""Drawing of the miniature world with Pillow."""
