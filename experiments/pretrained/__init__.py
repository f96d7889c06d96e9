"""Settings for pretrained models, chosen on real ones."""
