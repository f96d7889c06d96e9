"""What a federation of 4 to 100 clients takes."""
