"""Measurements of the library on public material; nothing imports them but their tests."""
