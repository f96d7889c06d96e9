"""From a run config to the data and the models that it names."""
