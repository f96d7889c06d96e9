"""Real pretrained models, from folders: ``make test-real``."""
