"""Real machines: certificates, the check of a node, the worker."""
