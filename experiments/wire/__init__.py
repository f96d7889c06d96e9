"""The main job over several seeds, with its controls."""
