"""The command ``fedfuse export``: a run's model as an ordinary Hugging Face folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedfuse.tracking.run import SERVER


def export(
    folder: Annotated[Path, typer.Argument(help="A run folder.")],
    output: Annotated[
        Path | None, typer.Option(help="Folder to make; by default merged, beside the adapter.")
    ] = None,
    model: Annotated[
        str, typer.Option(help="server, a client's number, or its name in the report.")
    ] = SERVER,
    dtype: Annotated[
        str, typer.Option(help="float32, bfloat16 or float16; by default the run's.")
    ] = "",
) -> None:
    """Write a model of a run for transformers, vLLM and llama.cpp, with a model card.

    Its adapter is merged into the base. Of a simulation any client's model can be had; a deployed
    client's adapter is on its own machine.
    """
    from fedfuse.exporting.export import export as write
    from fedfuse.report.formatting import bytes_text, loss_text

    found = write(folder, output or "", model=model, dtype=dtype)
    merged, loss = found.merged, found.loss
    measured = f", test loss {loss_text(loss)} nats/byte" if loss is not None else ""
    weights = bytes_text(merged.num_bytes)
    print(f"{found.folder}: {merged.architecture}, {merged.dtype}, {weights}{measured}")
