"""The two tables of docs/wire.md."""

from __future__ import annotations

from collections.abc import Mapping


def one_round(summary: Mapping[str, Mapping[str, float]]) -> str:
    """Markdown: how one round's knowledge travelled, and what the server learned from it."""
    lines = [
        "| told as | bytes a label row | test loss, nats/byte | against 32-bit floats | chance |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, found in summary.items():
        change = f"{found['loss_over_float32']:+.1%} ± {found['loss_over_float32_std']:.1%}"
        size, chance = f"{found['bytes_per_row']:.1f}", f"{found['chance']:.1%}"
        lines.append(f"| {name} | {size} | {found['loss']:.4f} | {change} | {chance} |")
    return "\n".join(lines)


def rounds(summary: Mapping[str, Mapping[str, float]]) -> str:
    """Markdown: whole federations in which less is said."""
    lines = [
        "| told | kB up a round | kB down a round | server's excess loss | clients' excess loss |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, found in summary.items():
        server, clients = (
            f"{found[f'{who}_excess']:.4f} ± {found[f'{who}_excess_std']:.4f}"
            for who in ("server", "clients")
        )
        sizes = f"{found['kilobytes_up']:.0f} | {found['kilobytes_down']:.0f}"
        lines.append(f"| {name} | {sizes} | {server} | {clients} |")
    return "\n".join(lines)
