"""Compare decoders that are built from an encoder, and their initialisations.

    python benchmarks/ablation/run.py benchmarks/ablation/cpu.yaml --data DATA --encoder FOLDER

The script trains every decoder of a plan at every learning rate with the first seed. It trains the other seeds at the
rate with the lowest development loss. A plan names its tasks:

- translation: NTREX-128, Chinese to Tibetan, Uyghur, Kazakh and Mongolian in one model. DATA has `ntrex.tsv` with the
  columns split, zh, bo, ug, kk and mn.
- parallel: interface strings, Chinese to Kazakh, Uyghur and Mongolian in one model. DATA has `software.tsv` with the
  columns split, zh, kk, ug and mn. Rows with an empty cell are left out.
- software: the same, with all rows of each language. software-kk and software-dz have one target language.
  software-transfer has all Kazakh pairs and some pairs of the other languages. Dzongkha needs the column dz.
- titles: Kazakh titles with the help of Chinese titles. DATA has `titles/` as in examples/recipes/titles.py.

Runs after pretraining also read `mono/LANGUAGE.*.txt`. FOLDER has the stages of the encoder, as
examples/train_encoder.py writes them. Each run writes a file to `runs/` and is not repeated. report.py makes
`results.json`, `results.md` and `results.png` from these files.
"""

import argparse
import hashlib
import itertools
import shutil
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from comparison import final_loss, write_report
from decoders import Start, build
from learning import SCHEDULE, learn
from plan import Experiment, Plan, name_of
from tasks import TASKS
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_NAME, logging

from modeling_xlm_swcm.checkpoints.reading import read_json
from modeling_xlm_swcm.conversion import ConversionError
from modeling_xlm_swcm.training.arguments import ModelArguments, TrainingArguments, parse_arguments
from modeling_xlm_swcm.training.checkpoints import TrainingError
from modeling_xlm_swcm.training.files import write_json
from modeling_xlm_swcm.training.pretraining import PretrainDataArguments, pretrain
from modeling_xlm_swcm.training.rows import DataError


def run_file(settings: dict, output: Path) -> Path:
    """Return the file of a run."""
    return output / "runs" / f"{name_of(settings, 'setting', 'learning_rate', 'seed')}.json"


def read_result(settings: dict, output: Path) -> dict | None:
    """Return the result of a run, or None if it has not ended."""
    path = run_file(settings, output)
    result = read_json(path) if path.exists() else None
    if result and result["settings"] != settings:
        raise DataError(
            f"{path} belongs to another plan, encoder or data. Choose another --output_dir, or delete this file."
        )
    return result if result and result["status"] != "started" else None


def train_run(settings: dict, args: argparse.Namespace):
    """Train and score a run. A loss that is not finite is a result. Other errors end the command."""
    path = run_file(settings, args.output_dir)
    result = {"settings": settings, "status": "started"}
    write_json(path, result)
    try:
        start = (load_pretrained_start if settings["pretraining"] else load_start)(settings, args)
        learn(start, settings, args.data, args.output_dir / "scratch", result)
        result["status"] = "done"
        outcome = f"dev {final_loss(result):.3f}, chrF++ {result['scores']['all']['chrf++']:.1f}"
    except TrainingError as error:
        result |= {"status": "failed", "reason": str(error)}
        outcome = f"failed: {error}"
    write_json(path, result)
    print(f"{path.stem}: {outcome}", flush=True)


def load_start(settings: dict, args: argparse.Namespace) -> Start:
    """Build the decoder of a run from the encoder, with the dropout of the plan."""
    encoder, dropout = args.encoder / settings["encoder"], settings["dropout"]
    start = partial(build, settings["variant"], languages=TASKS[settings["task"]].languages, seed=settings["seed"])
    if dropout is None:
        return start(str(encoder))
    with TemporaryDirectory() as folder:
        shutil.copytree(encoder, folder, dirs_exist_ok=True)
        config = read_json(Path(folder, CONFIG_NAME))
        config |= {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
        write_json(Path(folder, CONFIG_NAME), config)
        return start(folder)


def pretrained_folder(settings: dict, args: argparse.Namespace) -> Path:
    return args.output_dir / "pretrained" / name_of(settings, "seed")


def load_pretrained_start(settings: dict, args: argparse.Namespace) -> Start:
    """Load the pretrained model of a run. After pretraining no weight counts as a copy."""
    folder = pretrained_folder(settings, args)
    ended = read_json(folder / "ended.json")
    if ended["settings"] != pretraining_of(settings):
        raise DataError(
            f"{folder} belongs to another plan, encoder or data. Choose another --output_dir, or delete this folder."
        )
    if ended["reason"]:
        raise TrainingError(f"The pretraining failed: {ended['reason']}")
    model = AutoModelForSeq2SeqLM.from_pretrained(folder / "model")
    return Start(model, AutoTokenizer.from_pretrained(folder / "model"), set())


def pretrain_run(settings: dict, args: argparse.Namespace):
    """Pretrain the model of a run on denoising of `mono/` and, for translation, on its pairs in both directions."""
    folder = pretrained_folder(settings, args)
    start = load_start(settings, args)
    start.model.save_pretrained(folder / "untrained")
    start.tokenizer.save_pretrained(folder / "untrained")
    write_json(folder / "corpora.json", {"train": write_corpora(settings, args, folder)})
    options = {"model_name_or_path": folder / "untrained", "data": folder / "corpora.json", "skip_bad_rows": True}
    options |= {"output_dir": folder / "model", "seed": settings["seed"], "disable_tqdm": True}
    options |= SCHEDULE | settings["pretraining"]
    begin, reason = time.perf_counter(), None
    with (folder / "log.txt").open("w") as log, redirect_stdout(log):
        try:
            argv = [f"--{name}={value}" for name, value in options.items()]
            pretrain(*parse_arguments(ModelArguments, PretrainDataArguments, TrainingArguments, argv=argv))
        except TrainingError as error:
            reason = str(error)
    ended = {"reason": reason, "seconds": time.perf_counter() - begin, "settings": pretraining_of(settings)}
    write_json(folder / "ended.json", ended)


def pretraining_of(settings: dict) -> dict:
    """Return the settings of a run that its pretraining depends on."""
    return {name: settings[name] for name in ("variant", "origins", "task", "pairs", "seed", "pretraining")}


def write_corpora(settings: dict, args: argparse.Namespace, folder: Path) -> list[dict]:
    """Write the parallel text of a run, and return all corpora of its pretraining."""
    task = TASKS[settings["task"]]
    corpora = [{"path": str(args.data / "mono" / f"{code}.*.txt"), "language": code} for code in task.languages]
    translations = defaultdict(list)
    for pair in task.read_train(args.data, settings["pairs"]):
        if pair.src_lang != pair.tgt_lang:
            translations[pair.src_lang, pair.tgt_lang].append(f"{pair.source}\t{pair.target}\n")
    for (source, target), rows in translations.items():
        path = folder / f"{target}.tsv"
        path.write_text(f"{source}\t{target}\n{''.join(rows)}", encoding="utf-8")
        corpora.append({"path": str(path), "languages": [source, target]})
    return corpora


def digest(*paths: Path) -> str:
    """Return a digest of the contents of files."""
    content = hashlib.sha256()
    for path in paths:
        if not path.is_file():
            raise DataError(f"{path} does not exist. Check --data and --encoder.")
        content.update(path.read_bytes())
    return content.hexdigest()[:16]


def best_rate(plan: Plan, experiment: Experiment, rates: list[float], output: Path) -> float | None:
    """Return the rate with the lowest development loss of the first seed, or None if no run has finished."""
    results = [read_result(plan.settings_of(experiment, rate, plan.seeds[0]), output) for rate in rates]
    done = [result for result in results if result["status"] == "done"]
    return min(done, key=final_loss)["settings"]["learning_rate"] if done else None


def set_up_worker():
    """Set verbosity and threads of a process that does runs."""
    logging.disable_progress_bar()
    # Transformers would report new weights as missing.
    logging.set_verbosity_error()
    if not torch.cuda.is_available():
        # A model this small is slower with several threads.
        torch.set_num_threads(1)


def execute(runs: list[dict], args: argparse.Namespace):
    """Do the runs without a result, `args.jobs` at a time, after the pretraining that they need."""
    runs = [settings for settings in runs if read_result(settings, args.output_dir) is None]
    folders = {pretrained_folder(settings, args): settings for settings in runs if settings["pretraining"]}
    missing = [settings for folder, settings in folders.items() if not (folder / "ended.json").exists()]
    print(f"{len(missing)} pretrainings and {len(runs)} runs to do.", flush=True)
    for work, todo in ((pretrain_run, missing), (train_run, runs)):
        for_all(partial(work, args=args), todo, args.jobs)


def run_all(plan: Plan, entry: dict[str, list], experiments: list[Experiment], args: argparse.Namespace):
    """Do the runs of all rates with the first seed, then the other seeds at the best rate."""
    (first, *others), rates = entry["seeds"], entry["learning_rates"]
    execute([plan.settings_of(chosen, rate, first) for chosen in experiments for rate in rates], args)
    best = {chosen: best_rate(plan, chosen, rates, args.output_dir) for chosen in experiments}
    execute([plan.settings_of(chosen, rate, seed) for seed in others for chosen, rate in best.items() if rate], args)


def for_all(work: Callable[[dict], None], todo: list[dict], jobs: int):
    """Call `work` for each item, in this process or in several."""
    if jobs == 1:
        set_up_worker()
        for settings in todo:
            work(settings)
        return
    with ProcessPoolExecutor(jobs, get_context("spawn"), set_up_worker) as pool:
        list(pool.map(work, todo))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("plan", type=Path, help="YAML file with the plan.")
    parser.add_argument("--data", type=Path, required=True, help="Folder with the data.")
    parser.add_argument("--encoder", type=Path, required=True, help="Folder with the stages of the encoder.")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/ablation"), help="Folder for all output.")
    parser.add_argument(
        "--jobs", type=int, default=1, help="Number of runs at a time, with one thread each. Default: 1."
    )
    parser.add_argument(
        "--entries", type=int, nargs="+", help="Entries of the plan to run, counted from 1. Default: all."
    )
    args = parser.parse_args()
    try:
        if torch.cuda.device_count() > 1:
            raise DataError("A run uses one GPU, but there are several. Choose one with CUDA_VISIBLE_DEVICES.")
        run_plan(args)
    except (ConversionError, DataError) as error:
        sys.exit(f"error: {error}")


def run_plan(args: argparse.Namespace):
    """Do all runs of a plan, and write the report."""
    plan, output = Plan.load(args.plan), args.output_dir
    if args.entries:
        plan.keep_entries(args.entries)
    planned = list(itertools.chain.from_iterable(plan.experiment_lists()))
    tasks = sorted({task for _, _, task, _, _ in planned})
    plan.origins = {name: digest(*(args.data / file for file in TASKS[name].files)) for name in tasks}
    if any(setting == "pretrained" for *_, setting in planned):
        plan.origins["mono"] = digest(*sorted((args.data / "mono").glob("*.txt")))
    plan.origins |= {name: digest(args.encoder / stage / SAFE_WEIGHTS_NAME) for name, stage in plan.stages.items()}
    for entry, experiments in zip(plan.experiments, plan.experiment_lists(), strict=True):
        for experiment in itertools.product(experiments, entry["learning_rates"], entry["seeds"]):
            # This raises an error if a result belongs to another plan.
            read_result(plan.settings_of(*experiment), output)
    for name in tasks:
        references = [pair.target for pair in TASKS[name].read_held_out(args.data, "test", plan.test_lines)]
        write_json(output / "test" / f"{name}.json", references)
    # Entries run in their order, each with all seeds, so that a run that is stopped leaves comparable results.
    for entry, experiments in zip(plan.experiments, plan.experiment_lists(), strict=True):
        run_all(plan, entry, experiments, args)
    write_report(output)


if __name__ == "__main__":
    main()
