"""Figures of curves and points, for the tools that draw some: by matplotlib, the extra `plots`."""

import importlib.util
import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def check_matplotlib() -> None:
    """Checks that figures can be drawn, before the work that they are to show.

    Raises:
        ImportError: If matplotlib is not installed; names the extra.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise ImportError("the figure needs matplotlib: pip install 'jaxgen[plots]'")


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure, of any thread and without a screen.

    Args:
        width: Width in inches.
        height: Height in inches.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def png_of(figure: "Figure") -> bytes:
    """The figure as a PNG file's bytes."""
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()
