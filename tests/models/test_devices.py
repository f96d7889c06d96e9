"""Any accelerator that torch knows, as far as it can be told without one."""

from __future__ import annotations

import pytest
import torch

from fedfuse.errors import FedfuseError
from fedfuse.models import devices


def with_accelerators(monkeypatch: pytest.MonkeyPatch, kind: str, count: int) -> None:
    here = torch.device(kind)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: here)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: count)


@pytest.mark.parametrize("kind", ["cuda", "mps", "xpu"])
def test_devices_that_are_here(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    with_accelerators(monkeypatch, kind, 2)
    assert devices.resolve_device("auto") == torch.device(kind)
    assert devices.resolve_device("cpu") == torch.device("cpu")
    assert devices.resolve_device(f"{kind}:1") == torch.device(kind, 1)
    assert devices.all_devices() == [0, 1]
    other = "xpu" if kind == "cuda" else "cuda"
    for name in (f"{kind}:2", f"{kind}:x", other, "", ":0", "tpu", "cpu:0"):
        with pytest.raises(
            FedfuseError, match=rf"auto, cpu, {kind}, {kind}:0, ... \(2 in all\), got"
        ):
            devices.resolve_device(name)


def test_devices_of_a_machine_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: None)
    assert devices.resolve_device("auto") == torch.device("cpu")
    assert devices.all_devices() == []
    with pytest.raises(FedfuseError, match="auto, cpu; there is no accelerator, got 'cuda'"):
        devices.resolve_device("cuda")
    cpu = torch.device("cpu")
    devices.release_cache(cpu)
    devices.reset_peak(cpu)
    assert devices.peak_memory(cpu) is None
    assert devices.total_memory(cpu) is None


def test_memory_that_a_kind_cannot_tell_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    def cannot(*_: object) -> int:
        raise NotImplementedError

    place, asked = torch.device("mps"), []
    for name in ("reset_peak_memory_stats", "max_memory_allocated", "get_memory_info"):
        monkeypatch.setattr(torch.accelerator, name, cannot)
    monkeypatch.setattr(torch.accelerator, "empty_cache", lambda: asked.append(1))
    devices.release_cache(place)
    devices.reset_peak(place)
    assert asked == [1]
    assert devices.peak_memory(place) is None
    assert devices.total_memory(place) is None
    monkeypatch.setattr(torch.accelerator, "get_memory_info", lambda device: (1, 2))
    monkeypatch.setattr(torch.accelerator, "max_memory_allocated", lambda device: 3)
    assert devices.peak_memory(place) == 3
    assert devices.total_memory(place) == 2
