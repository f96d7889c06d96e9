"""``python -m fedfuse.cli`` is ``fedfuse``."""

from fedfuse.cli.main import main

main()
