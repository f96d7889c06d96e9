"""What each choice in token alignment costs."""
