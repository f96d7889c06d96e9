"""All that is asked of a GPU, in eight minutes: ``benchmarks/gpu/run.sh``.

Results are written after each part, so that what was measured is there whatever comes after. With
``--quick`` sizes are tiny: the same code as a rehearsal, on a CPU too.
"""

from __future__ import annotations

import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks import harness
from benchmarks.gpu import federation, losses, passes
from fedfuse.models.devices import accelerator, resolve_device

Part = Callable[[], Iterator[tuple[dict[str, Any], Any]]]


def _device(place: torch.device) -> str:
    """Name of a device and version of what drives it."""
    if place.type != "cuda":
        return place.type if accelerator() or place.type == "cpu" else "none"
    properties = torch.cuda.get_device_properties(place)
    return (
        f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"
    )


@harness.benchmark
def main(
    file: harness.File = harness.ROOT / "benchmarks" / "results" / "gpu.json",
    device: Annotated[str, typer.Option(help="auto, cuda, or cpu for a rehearsal.")] = "auto",
    repeats: harness.Repeats = 11,
    ray: Annotated[bool, typer.Option(help="Also with fractional GPUs, where Ray is.")] = True,
    quick: harness.Quick = False,
) -> Iterator[harness.Measured]:
    """Measure losses, passes, back-off and federations, and write the result file."""
    place = resolve_device(device)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        parts: dict[str, Part] = {
            "losses": lambda: iter([losses.measure(place, repeats=repeats, quick=quick)]),
            "passes": lambda: iter([passes.measure(place, folder, repeats=repeats, quick=quick)]),
            "back_off": lambda: iter([(passes.measure_back_off(place, folder, quick=quick), {})]),
            "federation": lambda: federation.measure(place, folder, ray=ray, quick=quick),
        }
        results: dict[str, Any] = {"device": _device(place)}
        raw: dict[str, Any] = {}
        for name, part in parts.items():
            try:
                for found, more in part():
                    results |= found
                    raw[name] = {**raw.get(name, {}), **more}
                    yield harness.Measured(results, raw)
            except Exception as error:  # of one part; the others are measured all the same
                traceback.print_exc()
                results[f"{name}_failed"] = f"{type(error).__name__}: {error}"[:300]
                yield harness.Measured(results, raw)
    if any(key.endswith("_failed") for key in results):
        sys.exit(1)
