"""Style of plots, and figures as SVG inside a page.

Colours follow those of Okabe and Ito, which readers with any colour vision tell apart; stages
differ in their markers and lines as well. Nothing here touches matplotlib's global state for longer
than a plot.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any, NamedTuple, ParamSpec
from xml.etree import ElementTree

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch, PathPatch
from matplotlib.path import Path
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Affine2D

P = ParamSpec("P")

# Text and lines of a plot inside a page take the page's text colour, so that they stay readable in
# its dark version. This value marks them until then.
INK = "#1b1f24"
MUTED = "#808890"
STAGE_COLOURS = {
    "zero-shot": MUTED,
    "standalone": "#d98c00",
    "public-only": "#c4699b",
    "federated": "#0f7fc4",
    "centralized": "#009e73",
}
STAGE_MARKERS = {
    "zero-shot": "o",
    "standalone": "s",
    "public-only": "^",
    "federated": "o",
    "centralized": "D",
}
STAGE_LINES: dict[str, tuple[float, tuple[float, ...]]] = {
    "standalone": (0, (5, 2)),
    "public-only": (0, (1.5, 1.5)),
    "centralized": (0, (6, 1.5, 1.5, 1.5)),
}
# Categories in order; where there are more, the colours come again, hatched.
PALETTE = ("#0f7fc4", "#e69f00", "#009e73", "#c4699b", "#56b4e9", "#d55e00", "#b3a800", "#7a5fb0")
HATCHES = ("", "////", "....", "xxxx")

WIDTH = 9.6  # inches: 922 CSS pixels, the width of the page's text

# Any: matplotlib types the keys of its settings, and that type changes from version to version.
RC: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.labelsize": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.axisbelow": True,
    "grid.color": MUTED,
    "grid.alpha": 0.28,
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "legend.fontsize": 9.0,
    "hatch.linewidth": 0.6,
    # Names come from outside: a dollar sign in one is no formula.
    "text.parse_math": False,
    "svg.hashsalt": "fedfuse",
}


@contextmanager
def styled(fonttype: str = "none") -> Iterator[None]:
    """Draw in the report's style, whatever the user's matplotlibrc says.

    By default an SVG's text stays text: searchable, copied and read aloud. ``path`` draws letters.
    """
    with mpl.rc_context(), warnings.catch_warnings():
        mpl.rcdefaults()
        mpl.rcParams.update(RC | {"svg.fonttype": fonttype})
        # A name may hold letters that matplotlib's font lacks; the browser's font has them.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def plot(draw: Callable[P, Figure | None]) -> Callable[P, str]:
    """Turn a function that draws a figure into one that returns its SVG, "" where there is none."""

    @wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> str:
        with styled():
            figure = draw(*args, **kwargs)
            return "" if figure is None else inline_svg(figure, draw.__name__)

    return drawn


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches, that never touches a display."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


class Fill(NamedTuple):
    """Filling of a category's bars."""

    colour: str
    hatch: str = ""


def category_fill(index: int) -> Fill:
    """The n-th category of a stacked bar."""
    again = (index // len(PALETTE)) % len(HATCHES)
    return Fill(PALETTE[index % len(PALETTE)], HATCHES[again])


def stack(axes: Axes, bottom: dict[int, float], heights: Mapping[int, float], fill: Fill) -> None:
    """Put a category's bars on top of ``bottom``, which grows by them.

    All bars of a category are one path: a hundredth of the time and of the file that bars take.
    """
    boxes = [
        Path.unit_rectangle().transformed(
            Affine2D().scale(0.8, height).translate(x - 0.4, bottom.get(x, 0.0))
        )
        for x, height in heights.items()
        if height > 0
    ]
    for x, height in heights.items():
        bottom[x] = bottom.get(x, 0.0) + height
    if boxes:
        bars = PathPatch(
            Path.make_compound_path(*boxes),
            facecolor=fill.colour,
            hatch=fill.hatch,
            edgecolor="white",
            linewidth=0.3,
        )
        axes.add_patch(bars)
        axes.autoscale_view()


def fill_legend(figure: Figure, entries: Sequence[tuple[str, Fill]]) -> None:
    """A legend of filled boxes above a figure; ``legend_height`` is what it takes."""
    handles = [
        Patch(label=label, facecolor=fill.colour, hatch=fill.hatch, edgecolor="white")
        for label, fill in entries
    ]
    # Legends fill column by column; readers go row by row.
    labels = [label for label, _ in entries]
    columns = min(_legend_columns(labels, figure.get_figwidth()), len(handles))
    ordered = [handle for column in range(columns) for handle in handles[column::columns]]
    figure.legend(handles=ordered, loc="outside upper left", ncols=columns)


def legend_height(labels: Sequence[str], width: float = WIDTH) -> float:
    """Inches that a legend of such entries takes above a figure of a width in inches."""
    return 0.1 + 0.22 * -(-len(labels) // _legend_columns(labels, width))


def _legend_columns(labels: Sequence[str], width: float) -> int:
    """The most columns, up to 6, that fit a width in inches.

    The full width holds 115 characters, and a box takes as much as 7.
    """
    for columns in range(6, 1, -1):
        lengths = (max(map(len, labels[c::columns]), default=0) + 7 for c in range(columns))
        if sum(lengths) <= 115 * width / WIDTH:
            return columns
    return 1


def whole_rounds(axes: Axes) -> None:
    """Ticks of the x axis at whole rounds only."""
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))


_SVG = "http://www.w3.org/2000/svg"
_LINK = "{http://www.w3.org/1999/xlink}href"
_REFERENCE = re.compile(r"url\(#([^)]*)\)")


def inline_svg(figure: Figure, prefix: str) -> str:
    """The figure as an ``<svg>`` element: no prologue, ids unique under ``prefix``, themed ink."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    root = ElementTree.fromstring(buffer.getvalue())
    for child in root.findall(f"{{{_SVG}}}metadata"):
        root.remove(child)
    for element in root.iter():
        for key, value in element.attrib.items():
            if key == "id":
                value = f"{prefix}-{value}"
            elif key == _LINK:
                value = value.replace("#", f"#{prefix}-", 1)
            value = _REFERENCE.sub(rf"url(#{prefix}-\1)", value)
            element.set(key, value.replace(INK, "currentColor"))
    # CSS pixels, so that letters have one size in all plots; the view box keeps the proportions.
    root.set("width", f"{figure.get_figwidth() * 96:.0f}")
    root.attrib.pop("height", None)
    root.set("role", "img")
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", _LINK[1:-5])
    return ElementTree.tostring(root, encoding="unicode")
