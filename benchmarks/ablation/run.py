"""When does a decoder made of the encoder's weights pay, and how should it start?

    python benchmarks/ablation/run.py benchmarks/ablation/cpu.yaml --data DATA --encoder FOLDER

Trains every decoder of a plan, at every learning rate with the first seed, then with the other seeds at the rate of
the lowest development loss. Tasks are NTREX-128, Chinese to Tibetan, Uyghur, Kazakh and Mongolian in one model, and
Kazakh titles with the help of Chinese ones. DATA has `ntrex.tsv` (columns split, zh, bo, ug, kk, mn), `titles/` as in
examples/recipes/titles.py and, for runs after pretraining, `mono/LANGUAGE.*.txt`; FOLDER has the stages of the
encoder, as examples/train_encoder.py leaves them. Each run writes a file to `runs/`, and is not done
again; report.py makes `results.json`, `results.md` and `results.png` of them.
"""

import argparse
import hashlib
import itertools
import json
import shutil
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import report
import torch
import yaml
from decoders import VARIANTS, Start, build
from learning import SCHEDULE, learn
from tasks import TASKS
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_NAME, logging

from modeling_xlm_swcm.conversion import ConversionError
from modeling_xlm_swcm.training.checkpoints import TrainingError
from modeling_xlm_swcm.training.results import write_whole
from modeling_xlm_swcm.training.rows import DataError


sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
import pretrain as pretraining  # noqa: E402 - a script, found by its folder


SETTINGS = ("direct", "pretrained")


@dataclass(kw_only=True)
class Plan:
    """
    Args:
        stages: name -> folder in the encoder's.
        steps, batch_size, max_length: of every run; pairs of more tokens are left out, a titles passage is cut.
        eval_steps: steps between two looks at the development loss.
        learning_rates: among which the first seed chooses.
        experiments: lists of `variants`, `stages`, `tasks`, `pairs` and `settings`, each for their product. Pairs are
            those of each language that is translated into, or the Kazakh titles beside all Chinese ones. The setting
            "direct" is straight to the task, "pretrained" after denoising and translation.
        pretraining: options of examples/pretrain.py.
        dropout: of hidden states and attention, where it is not to be what the encoder was trained with.
        dev_lines, test_lines: sentences of these splits, each with its translations, or passages; else all.
        origins: digests of each task's data, of `mono/` and of the encoder at each stage, so that no run is taken for
            another's.
    """

    stages: dict[str, str]
    steps: int
    batch_size: int
    max_length: int
    eval_steps: int
    learning_rates: list[float]
    seeds: list[int]
    experiments: list[dict[str, list]]
    pretraining: dict = field(default_factory=dict)
    dropout: float | None = None
    dev_lines: int | None = None
    test_lines: int | None = None
    origins: dict[str, str] = field(default_factory=dict, init=False)

    @classmethod
    def load(cls, path: Path) -> "Plan":
        try:
            plan = cls(**yaml.safe_load(path.read_text(encoding="utf-8")))
            plan.learning_rates = [float(rate) for rate in plan.learning_rates]  # 1e-3 is text to YAML
            plan.seeds.sort()
            experiments = plan.chosen()
        except (OSError, KeyError, TypeError, ValueError, yaml.YAMLError) as error:
            raise DataError(f"{path} is no plan: {type(error).__name__}: {error}") from error
        if plan.steps % plan.eval_steps:
            raise DataError(f"{path}: eval_steps must divide steps, or the last loss is not known.")
        for variant, stage, task, _, setting in itertools.chain.from_iterable(experiments):
            known = {"variant": (variant, VARIANTS), "stage": (stage, plan.stages)}
            known |= {"task": (task, TASKS), "setting": (setting, SETTINGS)}
            for kind, (value, values) in known.items():
                if value not in values:
                    raise DataError(f"{path} has the unknown {kind} {value}; known: {', '.join(values)}.")
            if setting == "pretrained" and not plan.pretraining:
                raise DataError(f"{path} has the setting pretrained, and no options under pretraining.")
            if setting == "pretrained" and not VARIANTS[variant].pretrainable:
                raise DataError(f"{path}: {variant} is no plain XLM-SWCM, and cannot be pretrained.")
        return plan

    def chosen(self) -> list[list[tuple[str, str, str, int, str]]]:
        """Every variant, stage, task, pairs and setting of each entry of the experiments."""
        keys = ("variants", "stages", "tasks", "pairs", "settings")
        return [list(dict.fromkeys(itertools.product(*(entry[key] for key in keys)))) for entry in self.experiments]

    def run(self, experiment: tuple, rate: float, seed: int) -> dict:
        """The settings of a run."""
        settings = dict(zip(("variant", "stage", "task", "pairs", "setting"), experiment, strict=True))
        settings |= {"encoder": self.stages[settings["stage"]], "learning_rate": rate, "seed": seed}
        settings["origins"] = [self.origins[settings["task"]], self.origins[settings["stage"]]]
        settings |= {name: getattr(self, name) for name in report.BUDGET} | {"pretraining": None}
        if settings["setting"] == "pretrained":
            settings["origins"].append(self.origins["mono"])
            settings["pretraining"] = self.pretraining
        return settings


def name_of(settings: dict, *more: str) -> str:
    return "_".join(str(settings[key]) for key in ("variant", "stage", "task", "pairs", *more))


def write_json(path: Path, content: dict | list):
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def run_file(settings: dict, output: Path) -> Path:
    return output / "runs" / f"{name_of(settings, 'setting', 'learning_rate', 'seed')}.json"


def read_result(settings: dict, output: Path) -> dict | None:
    """What a run came to, if it has ended."""
    path = run_file(settings, output)
    result = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    if result and result["settings"] != settings:
        raise DataError(f"{path} is of another plan, encoder or data: give another --output_dir, or remove it.")
    return result if result and result["status"] != "started" else None


def train(settings: dict, args: argparse.Namespace):
    """Do a run. A loss that is not finite is a result; any other error ends the command."""
    path = run_file(settings, args.output_dir)
    result = {"settings": settings, "status": "started"}
    write_json(path, result)
    try:
        start = (load_pretrained if settings["pretraining"] else load)(settings, args)
        learn(start, settings, args.data, args.output_dir / "scratch", result)
        result["status"] = "done"
        outcome = f"dev {report.final_loss(result):.3f}, chrF++ {result['scores']['all']['chrf++']:.1f}"
    except TrainingError as error:
        result |= {"status": "failed", "reason": str(error)}
        outcome = f"failed: {error}"
    write_json(path, result)
    print(f"{path.stem}: {outcome}", flush=True)


def load(settings: dict, args: argparse.Namespace) -> Start:
    encoder, dropout = args.encoder / settings["encoder"], settings["dropout"]
    start = partial(build, settings["variant"], languages=TASKS[settings["task"]].languages, seed=settings["seed"])
    if dropout is None:
        return start(str(encoder))
    with TemporaryDirectory() as folder:
        shutil.copytree(encoder, folder, dirs_exist_ok=True)
        config = json.loads(Path(folder, CONFIG_NAME).read_text(encoding="utf-8"))
        config |= {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
        write_json(Path(folder, CONFIG_NAME), config)
        return start(folder)


def pretrained_folder(settings: dict, args: argparse.Namespace) -> Path:
    return args.output_dir / "pretrained" / name_of(settings, "seed")


def load_pretrained(settings: dict, args: argparse.Namespace) -> Start:
    """After pretraining nothing counts as a copy any more."""
    folder = pretrained_folder(settings, args)
    ended = json.loads((folder / "ended.json").read_text(encoding="utf-8"))
    if ended["settings"] != pretraining_of(settings):
        raise DataError(f"{folder} is of another plan, encoder or data: give another --output_dir, or remove it.")
    if ended["reason"]:
        raise TrainingError(f"Pretraining: {ended['reason']}")
    model = AutoModelForSeq2SeqLM.from_pretrained(folder / "model")
    return Start(model, AutoTokenizer.from_pretrained(folder / "model"), set())


def pretrain(settings: dict, args: argparse.Namespace):
    """Denoising of `mono/`, and of a run that translates its own pairs both ways, with examples/pretrain.py."""
    folder = pretrained_folder(settings, args)
    start = load(settings, args)
    start.model.save_pretrained(folder / "untrained")
    start.tokenizer.save_pretrained(folder / "untrained")
    write_json(folder / "corpora.json", {"train": write_corpora(settings, args, folder)})
    options = {"model_name_or_path": folder / "untrained", "data": folder / "corpora.json", "skip_bad_rows": True}
    options |= {"output_dir": folder / "model", "seed": settings["seed"], "disable_tqdm": True}
    options |= SCHEDULE | settings["pretraining"]
    begin, reason = time.perf_counter(), None
    with (folder / "log.txt").open("w") as log, redirect_stdout(log):
        try:
            pretraining.main([f"--{name}={value}" for name, value in options.items()])
        except TrainingError as error:
            reason = str(error)
    ended = {"reason": reason, "seconds": time.perf_counter() - begin, "settings": pretraining_of(settings)}
    write_json(folder / "ended.json", ended)


def pretraining_of(settings: dict) -> dict:
    """Those of a run's settings that its pretraining depends on."""
    return {name: settings[name] for name in ("variant", "origins", "task", "pairs", "seed", "pretraining")}


def write_corpora(settings: dict, args: argparse.Namespace, folder: Path) -> list[dict]:
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
    content = hashlib.sha256()
    for path in paths:
        if not path.is_file():
            raise DataError(f"There is no file {path}.")
        content.update(path.read_bytes())
    return content.hexdigest()[:16]


def best_rate(plan: Plan, experiment: tuple, output: Path) -> float | None:
    """That of the lowest development loss with the first seed; None where no run came to its end."""
    results = [read_result(plan.run(experiment, rate, plan.seeds[0]), output) for rate in plan.learning_rates]
    done = [result for result in results if result["status"] == "done"]
    return min(done, key=report.final_loss)["settings"]["learning_rate"] if done else None


def prepare_process():
    logging.disable_progress_bar()
    logging.set_verbosity_error()  # what is fresh would be reported as missing
    if not torch.cuda.is_available():
        torch.set_num_threads(1)  # of models this small, threads wait for each other more than they work


def execute(runs: list[dict], args: argparse.Namespace):
    """Those that have no result yet, `args.jobs` at a time, what they need pretrained before."""
    runs = [settings for settings in runs if read_result(settings, args.output_dir) is None]
    folders = {pretrained_folder(settings, args): settings for settings in runs if settings["pretraining"]}
    missing = [settings for folder, settings in folders.items() if not (folder / "ended.json").exists()]
    print(f"{len(missing)} pretrainings and {len(runs)} runs to do.", flush=True)
    for work, todo in ((pretrain, missing), (train, runs)):
        for_all(partial(work, args=args), todo, args.jobs)


def run_all(plan: Plan, experiments: list[tuple], args: argparse.Namespace):
    first, *others = plan.seeds
    execute([plan.run(chosen, rate, first) for chosen in experiments for rate in plan.learning_rates], args)
    rates = {chosen: best_rate(plan, chosen, args.output_dir) for chosen in experiments}
    execute([plan.run(chosen, rate, seed) for seed in others for chosen, rate in rates.items() if rate], args)


def for_all(work: Callable[[dict], None], todo: list[dict], jobs: int):
    if jobs == 1:
        prepare_process()
        for settings in todo:
            work(settings)
        return
    with ProcessPoolExecutor(jobs, get_context("spawn"), prepare_process) as pool:
        list(pool.map(work, todo))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("plan", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--encoder", type=Path, required=True, help="folder with the stages of the encoder")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/ablation"))
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, a thread each")
    args = parser.parse_args()
    try:
        if torch.cuda.device_count() > 1:
            raise DataError("Runs take one GPU: choose it with CUDA_VISIBLE_DEVICES.")
        plan, output = Plan.load(args.plan), args.output_dir
        planned = list(itertools.chain.from_iterable(plan.chosen()))
        tasks = sorted({task for _, _, task, _, _ in planned})
        plan.origins = {name: digest(*(args.data / file for file in TASKS[name].files)) for name in tasks}
        if any(setting == "pretrained" for *_, setting in planned):
            plan.origins["mono"] = digest(*sorted((args.data / "mono").glob("*.txt")))
        plan.origins |= {name: digest(args.encoder / stage / SAFE_WEIGHTS_NAME) for name, stage in plan.stages.items()}
        for chosen in itertools.product(planned, plan.learning_rates, plan.seeds):
            read_result(plan.run(*chosen), output)  # stops here if one is of another plan
        for name in tasks:
            references = [pair.target for pair in TASKS[name].read_held_out(args.data, "test", plan.test_lines)]
            write_json(output / "test" / f"{name}.json", references)
        # entries in their order, then seeds: what is there when time runs out compares
        for experiments in plan.chosen():
            run_all(plan, experiments, args)
        report.write(output)
    except (ConversionError, DataError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
