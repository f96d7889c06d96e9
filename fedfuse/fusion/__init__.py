"""Fusion of many teachers into one: rules that weigh them, and their weighted mixture."""
