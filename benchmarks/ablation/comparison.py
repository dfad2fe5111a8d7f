"""Comparison of the runs of an ablation: tables, bootstrap intervals and plots."""

import itertools
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import TypeVar

import numpy as np
from decoders import RANDOM, RANDOM_DECODERS, VARIANTS, WARM_START
from sacrebleu.metrics import CHRF
from tasks import TASKS

from modeling_xlm_swcm.checkpoints.plots import make_figure, save_figure
from modeling_xlm_swcm.checkpoints.reading import read_json
from modeling_xlm_swcm.training.files import write_json, write_whole
from modeling_xlm_swcm.training.rows import DataError


GROUP = ("stage", "task", "pairs", "setting")
# settings that are equal in all runs of a plan
BUDGET = (
    "steps",
    "batch_size",
    "max_length",
    "dropout",
    "adam_beta2",
    "warmup_steps",
    "eval_steps",
    "dev_lines",
    "test_lines",
)
# scores of the test that a run keeps
SCORES = ("chrf++", "rougeL_f", "bleu", "exact_match")
T = TypeVar("T")
CHRFPP, RESAMPLES = CHRF(word_order=2), 1000


def read_runs(output: Path) -> list[dict]:
    """Read all runs of a folder, and check that they belong to one plan."""
    paths = sorted((output / "runs").glob("*.json"))
    runs = [{"name": path.stem} | read_json(path) for path in paths]
    if len(budgets := {str([run["settings"][key] for key in BUDGET]) for run in runs}) > 1:
        raise DataError(
            f"{output / 'runs'} has runs of several plans: {', '.join(BUDGET)} are {' and '.join(sorted(budgets))}. "
            "Use a separate --output_dir for each plan."
        )
    return runs


def losses(run: dict) -> list[float]:
    return [point["dev_loss"] for point in run["curve"]]


def final_loss(run: dict) -> float:
    return losses(run)[-1]


def group_of(run: dict) -> tuple:
    return tuple(run["settings"][key] for key in GROUP)


def title_of(group: Sequence) -> str:
    stage, task, pairs, setting = group
    return f"Encoder {stage}, {TASKS[task].title.format(pairs)}, {setting}"


def choose_runs(runs: list[dict]) -> dict[tuple, dict[str, list[dict]]]:
    """Return the finished runs by group and variant, at the learning rate with the lowest loss of the first seed."""
    chosen = defaultdict(dict)
    first = min(run["settings"]["seed"] for run in runs)
    done = [run for run in runs if run["status"] == "done"]
    for variant in VARIANTS:
        for group in dict.fromkeys(map(group_of, done)):
            own = [run for run in done if group_of(run) == group and run["settings"]["variant"] == variant]
            if at_first := [run for run in own if run["settings"]["seed"] == first]:
                rate = min(at_first, key=final_loss)["settings"]["learning_rate"]
                chosen[group][variant] = [run for run in own if run["settings"]["learning_rate"] == rate]
    return chosen


def random_baseline(variants: dict[str, T], default: T) -> T:
    """Return the value of the random baseline: the first of `RANDOM_DECODERS` that takes part."""
    return next((variants[name] for name in RANDOM_DECODERS if name in variants), default)


def by_seed(runs: list[dict]) -> dict[int, dict]:
    return {run["settings"]["seed"]: run for run in runs}


def steps_to(run: dict, loss: float) -> int | None:
    """Return the first step with a development loss of at most `loss`, or None."""
    return next((point["step"] for point in run["curve"] if point.get("dev_loss", np.inf) <= loss), None)


def resample(run: dict, references: list[str], together: int) -> np.ndarray:
    """
    Compute chrF++ of bootstrap samples of the test set. The samples are the same for every run.

    Args:
        run (`dict`):
            Run with its outputs.
        references (`list[str]`):
            References of the test set.
        together (`int`):
            Number of consecutive references that are sampled as one unit, such as the translations of a sentence.

    Returns:
        `np.ndarray`: chrF++ of each sample, of shape (RESAMPLES,).
    """
    size = len(references) // together
    sampled = np.random.default_rng(0).multinomial(size, np.full(size, 1 / size), RESAMPLES).repeat(together, axis=1)
    # sacrebleu's own test knows no seeds, and its p-value calls two equal systems different.
    counts = np.array(CHRFPP._extract_corpus_statistics(run["outputs"], [references]))
    return np.array([CHRFPP._compute_score_from_stats(row.tolist()).score for row in sampled @ counts])


def score_misplaced(run: dict, references: list[str], together: int) -> float:
    """Compute chrF++ with the references of the next sentence. It is high if outputs ignore their source."""
    return CHRFPP.corpus_score(run["outputs"], [references[together:] + references[:together]]).score


def compare(own: dict[int, dict], baseline: dict[int, dict]) -> dict | None:
    """
    Compare runs with the runs of a baseline, seed by seed.

    The 95 % interval of chrF++ comes from a paired bootstrap that also samples the seeds. With n seeds, the variance
    over sampled seeds is too small by the factor (n - 1) / n. The function corrects it.

    Args:
        own (`dict[int, dict]`), baseline (`dict[int, dict]`):
            Runs by seed.

    Returns:
        `dict` or `None`: difference of the losses for each seed, mean difference of chrF++, and its interval. A
        positive difference is better than the baseline. `None` if no seed is in both.
    """
    if not (seeds := sorted(own.keys() & baseline.keys())):
        return None
    losses = [final_loss(baseline[seed]) - final_loss(own[seed]) for seed in seeds]
    scores = [own[seed]["scores"]["all"]["chrf++"] - baseline[seed]["scores"]["all"]["chrf++"] for seed in seeds]
    resampled = np.array([own[seed]["resampled"] - baseline[seed]["resampled"] for seed in seeds])
    sampled = np.random.default_rng(1).integers(len(seeds), size=(len(seeds), RESAMPLES))
    of_all = resampled.mean(axis=0)
    of_samples = np.take_along_axis(resampled, sampled, axis=0).mean(axis=0)
    means = of_all + (of_samples - of_all) * np.sqrt(len(seeds) / max(1, len(seeds) - 1))
    return {"dev_loss": losses, "chrf++": mean(scores), "interval": np.percentile(means, [2.5, 97.5]).tolist()}


def mean_and_spread(values: list[float]) -> dict:
    return {"mean": mean(values), "spread": stdev(values) if len(values) > 1 else None, "values": values}


def summarise_runs(runs: list[dict], output: Path) -> list[dict]:
    """
    Summarise the runs in one row for each variant of each group, the lowest loss first.

    Args:
        runs (`list[dict]`):
            Runs of a plan.
        output (`Path`):
            Output folder of the plan, with the references of the tests.

    Returns:
        `list[dict]`: the rows.
    """
    rows = []
    for group, variants in choose_runs(runs).items():
        _, task, _, _ = group
        references = json.loads((output / "test" / f"{task}.json").read_text(encoding="utf-8"))
        for run in itertools.chain.from_iterable(variants.values()):
            run["resampled"] = resample(run, references, TASKS[task].pairs_a_line)
        baselines = {RANDOM: by_seed(random_baseline(variants, [])), WARM_START: by_seed(variants.get(WARM_START, []))}
        for variant, own in sorted(variants.items(), key=lambda item: mean(map(final_loss, item[1]))):
            started = [run for run in runs if group_of(run) == group and run["settings"]["variant"] == variant]
            rates = {run["settings"]["learning_rate"] for run in started}
            row = dict(zip(GROUP, group, strict=True)) | {"variant": variant}
            rows.append(row | describe_rates(own, rates) | describe_scores(own, references, TASKS[task].pairs_a_line))
            rows[-1] |= compare_with_baselines(variant, own, baselines)
    return rows


def describe_rates(own: list[dict], rates: set[float]) -> dict:
    """Return learning rate, seeds, size and time of the runs of a variant. `rates` are the rates that were tried."""
    rate = own[0]["settings"]["learning_rate"]
    return {
        "learning_rate": rate,
        "rate_is_at_an_end": rate in (min(rates), max(rates)),
        "seeds": list(by_seed(own)),
        "parameters": own[0]["parameters"],
        "training_seconds": mean(run["seconds"]["training"] for run in own),
    }


def describe_scores(own: list[dict], references: list[str], pairs_a_line: int) -> dict:
    """Return losses and scores of the runs of a variant, as mean and spread over the seeds."""
    scores = {
        name: {code: mean_and_spread([run["scores"][code][name] for run in own]) for code in own[0]["scores"]}
        for name in SCORES
    }
    misplaced = [score_misplaced(run, references, pairs_a_line) for run in own]
    return {
        "dev_loss": mean_and_spread([final_loss(run) for run in own]),
        "lowest_dev_loss": mean_and_spread([min(losses(run)) for run in own]),
        **scores,
        "chrf++_misplaced": mean_and_spread(misplaced),
    }


def compare_with_baselines(variant: str, own: list[dict], baselines: dict[str, dict[int, dict]]) -> dict:
    """Compare the runs of a variant with the random decoder and with the warm start."""
    seeds, random = by_seed(own), baselines[RANDOM]
    return {
        "steps_to_random": [steps_to(seeds[seed], final_loss(random[seed])) for seed in seeds if seed in random],
        "than_random": compare(seeds, random) if own != list(random.values()) else None,
        "than_warm_start": compare(seeds, baselines[WARM_START]) if variant != WARM_START else None,
    }


def cell(numbers: dict, digits: int) -> str:
    spread = "" if numbers["spread"] is None else f" ± {numbers['spread']:.{digits}f}"
    return f"{numbers['mean']:.{digits}f}{spread}"


def loss_below(compared: dict | None) -> str:
    below = compared["dev_loss"] if compared else []
    return f"{mean(below):+.3f} [{min(below):+.3f}, {max(below):+.3f}]" if below else ""


def chrf_above(compared: dict | None) -> str:
    return "{chrf++:+.1f} [{0:+.1f}, {1:+.1f}]".format(*compared["interval"], **compared) if compared else ""


def make_table(rows: list[dict]) -> str:
    """Return Markdown tables, one for each group."""
    columns = ["decoder", "parameters", "rate", "seeds", "dev loss", "below random", "below warm start", "lowest"]
    columns += [
        "steps to random's",
        "chrF++",
        "misplaced",
        "above random",
        "above warm start",
        "BLEU",
        "exact",
        "ROUGE-L",
    ]
    text = ""
    for group, of_group in itertools.groupby(rows, key=lambda row: [row[key] for key in GROUP]):
        text += f"\n{title_of(group)}\n\n"
        text += f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}\n"
        for row in of_group:
            cells = [
                VARIANTS[row["variant"]].title,
                f"{row['parameters'] / 1e6:.1f} M",
                f"{row['learning_rate']:g}{' *' if row['rate_is_at_an_end'] else ''}",
                str(len(row["seeds"])),
                cell(row["dev_loss"], 3),
                loss_below(row["than_random"]),
                loss_below(row["than_warm_start"]),
                cell(row["lowest_dev_loss"], 3),
                ", ".join("-" if steps is None else str(steps) for steps in row["steps_to_random"]),
                cell(row["chrf++"]["all"], 1),
                cell(row["chrf++_misplaced"], 1),
                chrf_above(row["than_random"]),
                chrf_above(row["than_warm_start"]),
                *(cell(row[name]["all"], 1) for name in ("bleu", "exact_match", "rougeL_f")),
            ]
            text += f"| {' | '.join(cells)} |\n"
    return text.lstrip("\n")


def failures(runs: list[dict]) -> str:
    """Return a list of the runs without a result. A run that has started may still be running."""
    lines = [f"- {run['name']}: {run.get('reason', run['status'])}\n" for run in runs if run["status"] != "done"]
    return "\nWithout a result:\n\n" + "".join(lines) if lines else ""


def styles() -> dict[str, dict]:
    """Return a line style for each variant. All styles differ."""
    styles_by_name = {RANDOM: dict(color="black", lw=2.5, ls="--"), WARM_START: dict(color="grey", lw=2.5, ls="--")}
    for number, name in enumerate(name for name in VARIANTS if name not in styles_by_name):
        # C7 is grey, the colour of the warm start.
        colour = "C" + "012345689"[number % 9]
        styles_by_name[name] = dict(color=colour, lw=1.5, ls=("-", "-.", ":", (0, (8, 3)))[number // 9])
    return styles_by_name


def plot_runs(runs: list[dict], path: Path):
    """Plot the mean development loss over the steps, and how far it is below the random decoder."""
    groups = choose_runs(runs)
    figure, axes = make_figure(len(groups), 2, size=(17, 6 * len(groups)))
    for (left, right), (group, variants) in zip(axes, groups.items(), strict=True):
        # Without step 0, because losses of untrained models have another scale.
        means = {name: np.mean([losses(run)[1:] for run in own], axis=0) for name, own in variants.items()}
        for name in sorted(means, key=lambda name: means[name][-1]):
            steps = [point["step"] for point in variants[name][0]["curve"][1:]]
            left.plot(steps, means[name], **styles()[name])
            above = random_baseline(means, np.nan) - means[name]
            right.plot(steps, above, label=f"{means[name][-1]:.3f}  {VARIANTS[name].title}", **styles()[name])
        left.set(title="development loss, nats per character")
        right.set(title="nats per character below the random decoder")
        left.set(ylabel=title_of(group))
        right.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), title="at the end")
        for axis in (left, right):
            axis.set(xlabel="step")
            axis.grid(alpha=0.3)
    save_figure(figure, path)


def write_report(output: Path):
    """
    Write `results.json`, `results.md` and `results.png`, and print the tables. Not all runs need to be done.

    Args:
        output (`Path`):
            Output folder of run.py.

    Raises:
        DataError: if the folder has runs of several plans.
    """
    runs = read_runs(output)
    rows = summarise_runs(runs, output)
    kept = [{name: run[name] for name in run if name not in ("outputs", "resampled")} for run in runs]
    content = {"titles": {name: variant.title for name, variant in VARIANTS.items()}, "summary": rows, "runs": kept}
    write_json(output / "results.json", content)
    write_whole(output / "results.md", text := make_table(rows) + failures(runs))
    if rows:
        plot_runs(runs, output / "results.png")
    print(text)
