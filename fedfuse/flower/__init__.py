"""Everything that touches Flower: run config, messages, grid, simulation."""
