"""Time and memory of a step on a device."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median

import torch

from fedfuse.models.devices import peak_memory, release_cache, reset_peak


@dataclass(frozen=True, slots=True)
class Cost:
    """What a step takes.

    Attributes:
        seconds: of each repeat.
        peak: bytes at the peak beyond those before; None on a CPU.
    """

    seconds: list[float]
    peak: int | None

    @property
    def median(self) -> float:
        """Median of the seconds."""
        return median(self.seconds)


def synchronize(device: torch.device) -> None:
    """Wait until a device has done all that it was told."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def costs(
    steps: Mapping[str, Callable[[], object]], device: torch.device, repeats: int
) -> dict[str, Cost]:
    """Measure steps in turns, after one of each that sets things up, with which memory is taken."""
    peaks = {name: _peak(step, device) for name, step in steps.items()}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats):
        for name, step in steps.items():
            synchronize(device)
            started = time.perf_counter()
            step()
            synchronize(device)
            seconds[name].append(time.perf_counter() - started)
    return {name: Cost(seconds[name], peaks[name]) for name in steps}


def _peak(step: Callable[[], object], device: torch.device) -> int | None:
    step()  # what is set up once is not the step's
    synchronize(device)
    release_cache(device)
    reset_peak(device)
    before = peak_memory(device)
    step()
    synchronize(device)
    after = peak_memory(device)
    return None if before is None or after is None else after - before
