"""Which selector serves the server best: same teachers, same budget."""
