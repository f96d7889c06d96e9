"""The learned gate: features, networks, training."""
