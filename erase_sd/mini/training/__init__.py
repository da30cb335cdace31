"""How the miniature world was trained, and checks of its quality."""
