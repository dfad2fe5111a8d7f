"""Plots as PNG files. Figures do not use pyplot, so no display and no choice of a backend is needed."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from modeling_xlm_swcm.checkpoints.writing import whole_file


# endings of logged names that are no metrics of the model
NOT_METRICS = ("runtime", "per_second", "epoch", "flos", "model_preparation_time", "gen_len")


def make_figure(rows: int = 1, columns: int = 1, *, size: tuple[float, float]) -> tuple[Figure, np.ndarray]:
    """Return a figure of `size` inches and its axes, as an array of shape (rows, columns)."""
    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def save_figure(figure: Figure, path: Path):
    """Write a figure as PNG, complete or not at all."""
    with whole_file(path) as partial:
        figure.savefig(partial, dpi=120, format="png")


def plot_history(history: list[dict], path: Path):
    """Plot the logged losses over the steps and, in a second panel, the metrics of the evaluations.

    Args:
        history (`list[dict]`):
            Log of a trainer: `trainer.state.log_history`.
        path (`Path`):
            PNG file to write.
    """
    logged = {name for entry in history for name in entry if name.startswith("eval_")}
    metrics = sorted(name for name in logged - {"eval_loss"} if not name.endswith(NOT_METRICS))
    panels = {"loss": ["loss", "eval_loss"]} | ({"metric": metrics} if metrics else {})
    figure, axes = make_figure(1, len(panels), size=(10 if metrics else 6, 4))
    for axis, (ylabel, names) in zip(axes[0], panels.items(), strict=True):
        for name in names:
            plot_points(axis, history, name)
        axis.set(xlabel="step", ylabel=ylabel)
        axis.set_xlim(left=0)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend()
    save_figure(figure, path)


def plot_points(axis: Axes, history: list[dict], name: str):
    """Draw the logged values of `name` over their steps."""
    points = [(entry["step"], entry[name]) for entry in history if name in entry]
    if points:
        label = {"loss": "training", "eval_loss": "held out"}.get(name, name.removeprefix("eval_"))
        axis.plot(*zip(*points, strict=True), ".-", label=label)
