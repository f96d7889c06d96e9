"""Folders of real pretrained models: those of FEDFUSE_REAL_MODELS, else of ../shared/material."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.tokenizer_kinds import MATERIAL

FOLDER = Path(os.environ.get("FEDFUSE_REAL_MODELS") or MATERIAL.parent / "models").expanduser()
# Nats per byte of ``PROSE`` that a model needs, and may need with some tolerance.
LOSSES = {"stories260K": 1.70, "smollm2-135m-instruct": 1.00, "gemma3-270m": 0.95}


def folder_of(name: str) -> str:
    """A model's folder; the test is skipped, by the model's name, where there is none."""
    found = [FOLDER / name, MATERIAL.parent / "models" / name]
    for path in found:
        if (path / "model.safetensors").is_file():
            return str(path)
    pytest.skip(f"no model {name} in {FOLDER}: see FEDFUSE_REAL_MODELS")


@pytest.fixture(params=LOSSES)
def real_model(request: pytest.FixtureRequest) -> str:
    """Each model's folder in turn."""
    return folder_of(request.param)
