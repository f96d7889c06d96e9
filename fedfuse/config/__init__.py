"""The run config: one frozen dataclass a concept; imports neither PyTorch nor Flower."""
