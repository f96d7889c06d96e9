"""Put all committed results into the documents: ``python -m experiments.publish``."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path

from experiments.harness import PUBLISHERS

HERE = Path(__file__).parent


def main() -> None:
    """Find the studies by their result files, and publish each."""
    for folder in sorted({file.parent.name for file in HERE.glob("*/*.json")}):
        for module in sorted((HERE / folder).glob("*.py")):
            import_module(f"experiments.{folder}.{module.stem}")
    for file, publish in PUBLISHERS.items():
        if not file.exists():
            print(f"no results yet: {file.relative_to(HERE)}")
            continue
        publish(json.loads(file.read_text()))
        print(f"published: {file.relative_to(HERE)}")


if __name__ == "__main__":
    main()
