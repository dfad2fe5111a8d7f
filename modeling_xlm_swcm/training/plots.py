"""Plot the losses and metrics of a training run."""

from pathlib import Path

from matplotlib.axes import Axes

from modeling_xlm_swcm.checkpoints.plots import make_figure, save_figure


# endings of logged names that are no metrics of the model
NOT_METRICS = ("runtime", "per_second", "epoch", "flos", "model_preparation_time", "gen_len", "_outputs")


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
