"""The federated algorithms as functions of models, knowledge and settings."""
