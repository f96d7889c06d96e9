"""Accelerators by whatever kind of them torch knows: CUDA and ROCm, Apple's MPS, Intel's XPU.

One kind is here at most; what it cannot tell of its memory is None.
"""

from __future__ import annotations

import torch

from fedfuse.errors import FedfuseError


def accelerator() -> str:
    """Kind of accelerator that is here: ``cuda`` (ROCm too), ``mps``, ``xpu``, ...; "" for none."""
    found = torch.accelerator.current_accelerator(check_available=True)
    return found.type if found else ""


def resolve_device(device: str) -> torch.device:
    """``auto``, ``cpu``, or an accelerator, such as ``cuda``, ``cuda:1`` or ``mps``, that is here.

    Raises:
        FedfuseError: for any other, or one that is not here.
    """
    here = accelerator()
    if device == "auto":
        return torch.device(here or "cpu")
    if device == "cpu":
        return torch.device("cpu")
    kind, _, index = device.partition(":")
    count = torch.accelerator.device_count() if here else 0
    good = kind == here and (not index or (index.isdigit() and int(index) < count))
    if not kind or not good:
        known = f", {here}, {here}:0, ... ({count} in all)" if here else "; there is no accelerator"
        raise FedfuseError(f"device: expected auto, cpu{known}, got {device!r}")
    return torch.device(device)


def all_devices() -> list[int]:
    """Numbers of the accelerators that are here."""
    return list(range(torch.accelerator.device_count())) if accelerator() else []


def release_cache(device: torch.device) -> None:
    """Give back memory that is kept for later; does nothing on a CPU."""
    if device.type != "cpu":
        torch.accelerator.empty_cache()


def reset_peak(device: torch.device) -> None:
    """Measure the peak of memory from now on."""
    if device.type != "cpu":
        try:
            torch.accelerator.reset_peak_memory_stats(device)
        except (NotImplementedError, RuntimeError):
            return


def peak_memory(device: torch.device) -> int | None:
    """Most bytes that tensors had since ``reset_peak``; None on a CPU, or where it is not known."""
    if device.type == "cpu":
        return None
    try:
        return int(torch.accelerator.max_memory_allocated(device))
    except (NotImplementedError, RuntimeError):
        return None


def total_memory(device: torch.device) -> int | None:
    """Bytes of an accelerator; None on a CPU, or where it is not known."""
    if device.type == "cpu":
        return None
    try:
        return int(torch.accelerator.get_memory_info(device)[1])
    except (NotImplementedError, RuntimeError):
        return None
