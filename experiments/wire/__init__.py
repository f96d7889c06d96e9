"""What a leaner wire saves and costs."""
