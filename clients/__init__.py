"""The client side of a federation: the ClientApp and its phases."""
