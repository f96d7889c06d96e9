"""The two tables of docs/wire.md."""

from __future__ import annotations

from collections.abc import Mapping

from experiments import harness


def one_round(summary: Mapping[str, Mapping[str, float]]) -> str:
    """Markdown: how one round's knowledge travelled, and what the server learned from it."""
    rows = []
    for name, found in summary.items():
        change = f"{found['loss_over_float32']:+.1%} ± {found['loss_over_float32_std']:.1%}"
        size, chance = f"{found['bytes_per_row']:.1f}", f"{found['chance']:.1%}"
        rows.append((name, size, f"{found['loss']:.4f}", change, chance))
    heads = (
        "told as",
        "bytes a label row",
        "test loss, nats/byte",
        "against 32-bit floats",
        "chance",
    )
    return harness.markdown(heads, rows)


def rounds(summary: Mapping[str, Mapping[str, float]]) -> str:
    """Markdown: whole federations in which less is said."""
    rows = []
    for name, found in summary.items():
        losses = (
            f"{found[f'{who}_excess']:.4f} ± {found[f'{who}_excess_std']:.4f}"
            for who in ("server", "clients")
        )
        sizes = f"{found['kilobytes_up']:.0f}", f"{found['kilobytes_down']:.0f}"
        rows.append((name, *sizes, *losses))
    sides = "server's excess loss", "clients' excess loss"
    return harness.markdown(("told", "kB up a round", "kB down a round", *sides), rows)
