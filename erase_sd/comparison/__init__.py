"""Many runs side by side: a grid of concepts, methods and seeds, its tables and figures."""
