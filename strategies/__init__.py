"""The server side of a federation: the ServerApp and its strategies."""
