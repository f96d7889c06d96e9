"""Which rule serves the server best: same teachers, same budget."""
