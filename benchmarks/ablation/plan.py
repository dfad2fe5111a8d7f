"""The plan of an ablation: decoders, encoders, tasks and budget."""

import itertools
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from comparison import BUDGET
from decoders import VARIANTS
from tasks import TASKS

from modeling_xlm_swcm.training.rows import DataError


# variant, stage, task, pairs and setting
Experiment = tuple[str, str, str, int, str]
EXPERIMENT_FIELDS = ("variant", "stage", "task", "pairs", "setting")
SETTINGS = ("direct", "pretrained")


@dataclass(kw_only=True)
class Plan:
    """
    A plan of runs, read from a YAML file.

    Args:
        stages (`dict[str, str]`):
            Folder of each stage of the encoder, inside the encoder folder.
        steps (`int`), batch_size (`int`), max_length (`int`):
            Budget of each run. Longer pairs are left out, longer passages are truncated.
        eval_steps (`int`):
            Steps between two evaluations of the development loss.
        learning_rates (`list[float]`):
            Learning rates to try with the first seed.
        seeds (`list[int]`):
            Random seeds.
        experiments (`list[dict[str, list]]`):
            Entries with lists of `variants`, `stages`, `tasks`, `pairs` and `settings`. Each entry stands for all
            combinations of their items. `pairs` counts the pairs of each target language, or the Kazakh titles beside
            all Chinese titles. The setting "direct" trains on the task only. The setting "pretrained" trains on
            denoising and translation first. An entry can have other `learning_rates` and fewer `seeds`. Its seeds
            must contain the first seed of the plan.
        pretraining (`dict`, *optional*):
            Options of examples/pretrain.py.
        dropout (`float`, *optional*):
            Dropout of hidden states and attention. Defaults to the dropout of the encoder.
        adam_beta2 (`float`, *optional*, defaults to 0.999):
            Decay rate of AdamW's mean of squared gradients.
        warmup_steps (`float`, *optional*, defaults to 0.1):
            Steps until the learning rate reaches its peak. A number below 1 is a share of the steps.
        dev_lines (`int`, *optional*), test_lines (`int`, *optional*):
            Number of sentences or passages of these splits. Defaults to all.

    Attributes:
        origins (`dict[str, str]`): digests of the data of each task, of `mono/` and of the encoder at each stage. They
            tell the runs of different data apart.
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
    adam_beta2: float = 0.999
    warmup_steps: float = 0.1
    dev_lines: int | None = None
    test_lines: int | None = None
    origins: dict[str, str] = field(default_factory=dict, init=False)

    @classmethod
    def load(cls, path: Path) -> "Plan":
        """Read a plan and check it. Raise a [`DataError`] if it is wrong."""
        try:
            plan = cls(**yaml.safe_load(path.read_text(encoding="utf-8")))
            # YAML reads 1e-3 as text.
            plan.learning_rates = [float(rate) for rate in plan.learning_rates]
            plan.seeds.sort()
            for entry in plan.experiments:
                entry["learning_rates"] = [float(rate) for rate in entry.get("learning_rates", plan.learning_rates)]
                entry["seeds"] = sorted(entry.get("seeds", plan.seeds))
            experiments = plan.experiment_lists()
        except (OSError, KeyError, TypeError, ValueError, yaml.YAMLError) as error:
            raise DataError(f"{path} is not a plan ({type(error).__name__}: {error}). Correct the file.") from error
        if any(entry["seeds"][:1] != plan.seeds[:1] for entry in plan.experiments):
            raise DataError(
                f"{path}: an entry has seeds without {plan.seeds[0]}, the first seed of the plan. Add it to the entry."
            )
        if plan.steps % plan.eval_steps:
            raise DataError(
                f"{path}: eval_steps must divide steps (got {plan.eval_steps} and {plan.steps}). Change one of them."
            )
        for experiment in itertools.chain.from_iterable(experiments):
            plan.check_experiment(experiment, path)
        return plan

    def keep_entries(self, numbers: list[int]):
        """Keep the entries with these numbers, in this order. Raise a [`DataError`] if an entry does not exist."""
        if unknown := set(numbers) - set(range(1, len(self.experiments) + 1)):
            raise DataError(
                f"--entries must be between 1 and {len(self.experiments)} (got {min(unknown)}). Use other numbers."
            )
        self.experiments = [self.experiments[number - 1] for number in numbers]

    def check_experiment(self, experiment: Experiment, path: Path):
        """Raise a [`DataError`] if an experiment has unknown parts, or parts that do not fit."""
        variant, stage, task, _, setting = experiment
        known = {"variant": (variant, VARIANTS), "stage": (stage, self.stages)}
        known |= {"task": (task, TASKS), "setting": (setting, SETTINGS)}
        for kind, (value, values) in known.items():
            if value not in values:
                raise DataError(f"{path} has the unknown {kind} {value}. Known: {', '.join(values)}.")
        if setting == "pretrained" and not self.pretraining:
            raise DataError(f"{path} has the setting pretrained, but no options under pretraining. Add options.")
        if setting == "pretrained" and not VARIANTS[variant].pretrainable:
            raise DataError(f"{path}: the variant {variant} cannot be pretrained. Use the setting direct.")

    def experiment_lists(self) -> list[list[Experiment]]:
        """Return the experiments of each entry."""
        keys = ("variants", "stages", "tasks", "pairs", "settings")
        return [list(dict.fromkeys(itertools.product(*(entry[key] for key in keys)))) for entry in self.experiments]

    def settings_of(self, experiment: Experiment, rate: float, seed: int) -> dict:
        """Return the settings of a run."""
        settings = dict(zip(EXPERIMENT_FIELDS, experiment, strict=True))
        settings |= {"encoder": self.stages[settings["stage"]], "learning_rate": rate, "seed": seed}
        settings["origins"] = [self.origins[settings["task"]], self.origins[settings["stage"]]]
        settings |= {name: getattr(self, name) for name in BUDGET} | {"pretraining": None}
        if settings["setting"] == "pretrained":
            settings["origins"].append(self.origins["mono"])
            settings["pretraining"] = self.pretraining
        return settings


def name_of(settings: dict, *more: str) -> str:
    """Return the name of a run for files."""
    return "_".join(str(settings[key]) for key in ("variant", "stage", "task", "pairs", *more))
