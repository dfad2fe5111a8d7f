"""What the runs of an ablation came to, as `results.json`, `results.md` and `results.png`, also before all are done.

python benchmarks/ablation/report.py OUTPUT
"""

import argparse
import itertools
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

import matplotlib
import numpy as np
from decoders import RANDOM, VARIANTS, WARM_START
from sacrebleu.metrics import CHRF
from tasks import TASKS

from modeling_xlm_swcm.training.results import save_figure, write_whole
from modeling_xlm_swcm.training.rows import DataError


matplotlib.use("agg")
import matplotlib.pyplot as plt  # noqa: E402 - after the choice of backend


GROUP = ("stage", "task", "pairs", "setting")
# the same in a whole plan
BUDGET = ("steps", "batch_size", "max_length", "dropout", "eval_steps", "dev_lines", "test_lines")
CHRFPP, RESAMPLES = CHRF(word_order=2), 1000


def read_runs(output: Path) -> list[dict]:
    paths = sorted((output / "runs").glob("*.json"))
    runs = [{"name": path.stem} | json.loads(path.read_text(encoding="utf-8")) for path in paths]
    if len(budgets := {str([run["settings"][key] for key in BUDGET]) for run in runs}) > 1:
        raise DataError(
            f"{output / 'runs'} has runs of several plans, and wants a folder for each: {', '.join(BUDGET)} are "
            f"{' and '.join(sorted(budgets))}."
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


def choose(runs: list[dict]) -> dict[tuple, dict[str, list[dict]]]:
    """Group -> variant -> its runs that came to an end, of the rate with the lowest loss with the first seed."""
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


def by_seed(runs: list[dict]) -> dict[int, dict]:
    return {run["settings"]["seed"]: run for run in runs}


def steps_to(run: dict, loss: float) -> int | None:
    """The first step at which the development loss was no higher."""
    return next((point["step"] for point in run["curve"] if point.get("dev_loss", np.inf) <= loss), None)


def resample(run: dict, references: list[str], together: int) -> np.ndarray:
    """
    chrF++ of corpora drawn from the test set with replacement, the same ones for every run.

    What is drawn are so many `together` that follow each other, as a Chinese sentence's translations do.
    """
    size = len(references) // together
    drawn = np.random.default_rng(0).multinomial(size, np.full(size, 1 / size), RESAMPLES).repeat(together, axis=1)
    # of sacrebleu's own test only the parts: its p-value takes two equal systems for different, and knows no seeds
    counts = np.array(CHRFPP._extract_corpus_statistics(run["outputs"], [references]))
    return np.array([CHRFPP._compute_score_from_stats(row.tolist()).score for row in drawn @ counts])


def score_misplaced(run: dict, references: list[str], together: int) -> float:
    """chrF++ with the references of the next sentence, or passage: as high where outputs do not heed their source."""
    return CHRFPP.corpus_score(run["outputs"], [references[together:] + references[:together]]).score


def compare(own: dict[int, dict], baseline: dict[int, dict]) -> dict | None:
    """
    How far development loss is below a baseline's, for each seed, and chrF++ above it, mean over the seeds.

    The 95 % interval of chrF++ is of a bootstrap in pairs, where seeds are drawn too. Of so few, draws vary less than
    seeds do: by (n - 1) / n in variance, which is made good.
    """
    if not (seeds := sorted(own.keys() & baseline.keys())):
        return None
    losses = [final_loss(baseline[seed]) - final_loss(own[seed]) for seed in seeds]
    scores = [own[seed]["scores"]["all"]["chrf++"] - baseline[seed]["scores"]["all"]["chrf++"] for seed in seeds]
    resampled = np.array([own[seed]["resampled"] - baseline[seed]["resampled"] for seed in seeds])
    drawn = np.random.default_rng(1).integers(len(seeds), size=(len(seeds), RESAMPLES))
    of_all = resampled.mean(axis=0)
    of_drawn = np.take_along_axis(resampled, drawn, axis=0).mean(axis=0)
    means = of_all + (of_drawn - of_all) * np.sqrt(len(seeds) / max(1, len(seeds) - 1))
    return {"dev_loss": losses, "chrf++": mean(scores), "interval": np.percentile(means, [2.5, 97.5]).tolist()}


def mean_and_spread(values: list[float]) -> dict:
    return {"mean": mean(values), "spread": stdev(values) if len(values) > 1 else None, "values": values}


def summarise(runs: list[dict], output: Path) -> list[dict]:
    """A row for each variant of each group, the lowest loss first."""
    rows = []
    for group, variants in choose(runs).items():
        _, task, _, _ = group
        references = json.loads((output / "test" / f"{task}.json").read_text(encoding="utf-8"))
        for run in itertools.chain.from_iterable(variants.values()):
            run["resampled"] = resample(run, references, TASKS[task].pairs_a_line)
        random, warm_start = (by_seed(variants.get(name, [])) for name in (RANDOM, WARM_START))
        for variant, own in sorted(variants.items(), key=lambda item: mean(map(final_loss, item[1]))):
            started = [run for run in runs if group_of(run) == group and run["settings"]["variant"] == variant]
            rate, rates = own[0]["settings"]["learning_rate"], {run["settings"]["learning_rate"] for run in started}
            seeds = by_seed(own)
            rows.append(
                dict(zip(GROUP, group, strict=True))
                | {
                    "variant": variant,
                    "learning_rate": rate,
                    "rate_is_at_an_end": rate in (min(rates), max(rates)),
                    "seeds": list(seeds),
                    "parameters": own[0]["parameters"],
                    "training_seconds": mean(run["seconds"]["training"] for run in own),
                    "dev_loss": mean_and_spread([final_loss(run) for run in own]),
                    "lowest_dev_loss": mean_and_spread([min(losses(run)) for run in own]),
                    "steps_to_random": [
                        steps_to(seeds[seed], final_loss(random[seed])) for seed in seeds if seed in random
                    ],
                    **{
                        name: {
                            code: mean_and_spread([run["scores"][code][name] for run in own])
                            for code in own[0]["scores"]
                        }
                        for name in ("chrf++", "rougeL_f")
                    },
                    "chrf++_misplaced": mean_and_spread(
                        [score_misplaced(run, references, TASKS[task].pairs_a_line) for run in own]
                    ),
                    "than_random": compare(seeds, random) if variant != RANDOM else None,
                    "than_warm_start": compare(seeds, warm_start) if variant != WARM_START else None,
                }
            )
    return rows


def cell(numbers: dict, digits: int) -> str:
    spread = "" if numbers["spread"] is None else f" ± {numbers['spread']:.{digits}f}"
    return f"{numbers['mean']:.{digits}f}{spread}"


def loss_below(compared: dict | None) -> str:
    below = compared["dev_loss"] if compared else []
    return f"{mean(below):+.3f} [{min(below):+.3f}, {max(below):+.3f}]" if below else ""


def chrf_above(compared: dict | None) -> str:
    return "{chrf++:+.1f} [{0:+.1f}, {1:+.1f}]".format(*compared["interval"], **compared) if compared else ""


def table(rows: list[dict]) -> str:
    columns = ["decoder", "parameters", "rate", "seeds", "dev loss", "below random", "below warm start", "lowest"]
    columns += ["steps to random's", "chrF++", "misplaced", "above random", "above warm start", "ROUGE-L"]
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
                cell(row["rougeL_f"]["all"], 1),
            ]
            text += f"| {' | '.join(cells)} |\n"
    return text.lstrip("\n")


def failures(runs: list[dict]) -> str:
    """The runs without a result; a started one may still be going on."""
    lines = [f"- {run['name']}: {run.get('reason', run['status'])}\n" for run in runs if run["status"] != "done"]
    return "\nWithout a result:\n\n" + "".join(lines) if lines else ""


def styles() -> dict[str, dict]:
    drawn = {RANDOM: dict(color="black", lw=2.5, ls="--"), WARM_START: dict(color="grey", lw=2.5, ls="--")}
    for number, name in enumerate(name for name in VARIANTS if name not in drawn):
        colour = "C" + "012345689"[number % 9]  # without grey
        drawn[name] = dict(color=colour, lw=1.5, ls=("-", "-.", ":")[number // 9])
    return drawn


def plot(runs: list[dict], path: Path):
    """Development loss by step, mean over the seeds, and how far it is below the random decoder's."""
    groups = choose(runs)
    figure, axes = plt.subplots(len(groups), 2, figsize=(17, 6 * len(groups)), layout="constrained", squeeze=False)
    for (left, right), (group, variants) in zip(axes, groups.items(), strict=True):
        # without step 0: what untrained models lose has another scale
        means = {name: np.mean([losses(run)[1:] for run in own], axis=0) for name, own in variants.items()}
        for name in sorted(means, key=lambda name: means[name][-1]):
            steps = [point["step"] for point in variants[name][0]["curve"][1:]]
            left.plot(steps, means[name], **styles()[name])
            above = means.get(RANDOM, np.nan) - means[name]
            right.plot(steps, above, label=f"{means[name][-1]:.3f}  {VARIANTS[name].title}", **styles()[name])
        left.set(title="development loss, nats a character")
        right.set(title="nats a character below the random decoder")
        left.set(ylabel=title_of(group))
        right.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), title="at the end")
        for axis in (left, right):
            axis.set(xlabel="step")
            axis.grid(alpha=0.3)
    save_figure(figure, path)


def write(output: Path):
    runs = read_runs(output)
    rows = summarise(runs, output)
    kept = [{name: run[name] for name in run if name not in ("outputs", "resampled")} for run in runs]
    content = {"titles": {name: variant.title for name, variant in VARIANTS.items()}, "summary": rows, "runs": kept}
    write_whole(output / "results.json", json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    write_whole(output / "results.md", text := table(rows) + failures(runs))
    if rows:
        plot(runs, output / "results.png")
    print(text)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path, help="--output_dir of run.py")
    output = parser.parse_args().output
    if not (output / "runs").is_dir():
        parser.error(f"{output} is no folder of run.py's: it has no runs.")
    try:
        write(output)
    except DataError as error:
        parser.exit(1, f"error: {error}\n")
