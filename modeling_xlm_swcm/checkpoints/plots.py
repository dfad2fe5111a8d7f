"""Create and save plots without a display."""

import os
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .errors import ConversionError
from .writing import raise_write_error, whole_file


if TYPE_CHECKING:
    from matplotlib.figure import Figure


def check_plot_path(path: Path, option: str = "--plot"):
    """
    Refuse a plot that cannot be written, so that a long run does not fail at its end.

    Args:
        path (`Path`): The PNG file to write.
        option (`str`, *optional*, defaults to `"--plot"`): The option to name in the error.

    Raises:
        ConversionError: if `path` is not a PNG file, its folder is not writable or matplotlib is not installed.
    """
    if path.is_dir():
        raise ConversionError(f"{option} must name a PNG file, but {path} is a folder. Use a name that ends in .png.")
    if path.exists() and not path.is_file():
        raise ConversionError(f"{option} must name a PNG file, but {path} is not a regular file. Use another name.")
    if path.suffix.lower() != ".png":
        raise ConversionError(f"{option} must name a PNG file (got {path}). Use a name that ends in .png.")
    folder = next(parent for parent in path.absolute().parents if os.path.exists(parent))
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise ConversionError(
            f"{option} cannot write {path}: {folder} is not a writable folder. Choose another folder."
        )
    if find_spec("matplotlib") is None:
        raise ConversionError(f"{option} needs matplotlib. Install it with pip install matplotlib.")


def make_figure(
    rows: int = 1, columns: int = 1, *, size: tuple[float, float], **options
) -> "tuple[Figure, np.ndarray]":
    """
    Create a figure that draws with the Agg backend, without a display and without pyplot.

    Args:
        rows (`int`, *optional*, defaults to 1): Number of rows of axes.
        columns (`int`, *optional*, defaults to 1): Number of columns of axes.
        size (`tuple[float, float]`): Width and height in inches.
        options: Keywords of `Figure.subplots`, for example `sharey`.

    Returns:
        `tuple[Figure, np.ndarray]`: The figure and its axes, as an array of shape `(rows, columns)`.
    """
    # matplotlib is an optional dependency.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def as_label(name: str) -> str:
    """Return a name as a label of a plot, for example the name of a folder."""
    # matplotlib reads text between two `$` as a formula, and leaves a label out of the legend if it starts with `_`.
    label = name.replace("$", r"\$")
    return f" {label}" if label.startswith("_") else label


def save_figure(figure: "Figure", path: Path, dpi: int = 120):
    """
    Write a figure as a PNG file, whole or not at all. Create the folder if it does not exist.

    Args:
        figure (`matplotlib.figure.Figure`): The figure.
        path (`Path`): The PNG file to write.
        dpi (`int`, *optional*, defaults to 120): Resolution in dots per inch.

    Raises:
        ConversionError: if the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as partial:
            figure.savefig(partial, dpi=dpi, format="png")
    except OSError as error:
        raise_write_error(path, error)
        raise
