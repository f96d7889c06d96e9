"""The synthetic worlds with a known optimum, and the small models made for them."""
