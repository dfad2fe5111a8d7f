"""Arguments of the training scripts, from a YAML or JSON file and the command line."""

import difflib
import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import HfArgumentParser, Seq2SeqTrainingArguments
from transformers.integrations import get_available_reporting_integrations


def has_fast_bf16() -> bool:
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    return bool(torch.cpu.get_capabilities().get("avx512_bf16") or torch.cpu.get_capabilities().get("amx_bf16"))


@dataclass
class ModelArguments:
    model_name_or_path: str = field(metadata={"help": "the model to start from: folder or Hub id"})
    lora: bool = field(default=False, metadata={"help": "train LoRA adapters of the decoder, merged at the end"})
    lora_rank: int = field(default=16, metadata={"help": "of the adapters"})
    freeze_encoder: bool = field(default=False, metadata={"help": "keep encoder and embeddings as they are"})
    license: str | None = field(default=None, metadata={"help": "of the model, for its card, where it is not known"})

    def __post_init__(self):
        check_counts(self, "lora_rank")


@dataclass
class TrainingArguments(Seq2SeqTrainingArguments):
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "keep from the collator what the model does not know, such as an epoch"}
    )
    ddp_find_unused_parameters: bool | None = field(default=False, metadata={"help": "the model has none"})
    scheduled_sampling: float = field(
        default=0.0,
        metadata={
            "help": "share of the decoder's inputs that at the end of training is taken from the model's own "
            "predictions; it grows from 0, step by step (Mihaylova & Martins, 2019)"
        },
    )

    def __post_init__(self):
        check_counts(self, "per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps")
        if not 0 <= self.scheduled_sampling <= 1:
            raise ValueError(f"scheduled_sampling must be between 0 and 1; got {self.scheduled_sampling}.")
        if not self.learning_rate >= 0:
            raise ValueError(f"--learning_rate must not be below 0; got {self.learning_rate}.")
        if self.output_dir == "":
            raise ValueError("--output_dir is empty; give a folder.")
        super().__post_init__()
        # upstream does not list flyte
        if missing := set(self.report_to) - {*get_available_reporting_integrations(), "flyte"}:
            raise ValueError(f"--report_to {missing.pop()} needs the package of that name: install it first.")


def check_counts(arguments: Any, *names: str):
    """
    Raises:
        ValueError: one of these numbers is below 1.
    """
    for name in names:
        if (value := getattr(arguments, name)) is not None and value < 1:
            raise ValueError(f"--{name} must be at least 1; got {value}.")


def parse_arguments(*classes: type, argv: list[str] | None = None) -> tuple[Any, ...]:
    """
    An object of each dataclass, from the command line; a YAML or JSON file as its first argument gives other defaults.

    Without a word about it, training is in bfloat16 where the GPU or CPU has it.
    """
    # upstream's usage is all options, a screen of them
    parser = HfArgumentParser(classes, usage="%(prog)s [SETTINGS.yaml] [OPTIONS]; --help lists them")
    argv = sys.argv[1:] if argv is None else argv
    try:
        if argv and argv[0].endswith((".yaml", ".yml", ".json")):
            argv = read_settings(parser, argv[0]) + argv[1:]
        check_words(parser, argv)
        # without use_cpu, bf16 is taken for that of a GPU
        parser.set_defaults(use_cpu=not torch.cuda.is_available())
        parser.set_defaults(bf16=has_fast_bf16() and not parser.parse_known_args(argv)[0].fp16)
        parsed = parser.parse_args_into_dataclasses(argv)
        for seed in (arguments.seed for arguments in parsed if hasattr(arguments, "seed")):
            if not 0 <= seed < 2**32:
                raise ValueError(f"--seed must be from 0 to {2**32 - 1}; got {seed}.")
        return parsed
    except ValueError as error:
        sys.exit(f"error: {' '.join(str(error).split())}")


def check_words(parser: HfArgumentParser, argv: list[str]):
    """
    Raises:
        ValueError: a word of the command line is no option, nor the value of one.
    """
    options = parser._option_string_actions
    for word in argv:
        name = word.partition("=")[0]
        # the beginning of an option is enough for argparse
        if name.startswith("--") and not any(option.startswith(name) for option in options):
            raise ValueError(f"Unknown option {name}; {suggest(name, options)}")
    if words := parser.parse_known_args(argv)[1]:
        raise ValueError(f"The word {words[0]} belongs to no option; --help lists them.")


def suggest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, known, 1)
    return f"did you mean {near[0]}?" if near else "--help lists them."


def read_settings(parser: HfArgumentParser, path: str) -> list[str]:
    """
    What the file says, as words of a command line, so that it is checked like one.

    Raises:
        ValueError: it cannot be read, or has an unknown setting.
    """
    settings = read_yaml(path)
    if not isinstance(settings, dict):
        raise ValueError(f"{path} must hold a setting per line, such as learning_rate: 0.0001")
    known = {action.dest for action in parser._actions}
    if unknown := sorted(map(str, settings.keys() - known)):
        raise ValueError(f"{path} has the unknown setting {unknown[0]}; {suggest(unknown[0], known)}")
    return [word for name, value in settings.items() if value is not None for word in as_words(name, value)]


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node, deep=False):
        names = [key.value for key, _ in node.value]
        if repeated := next((name for name in names if names.count(name) > 1), None):
            raise yaml.constructor.ConstructorError(None, None, f"{repeated} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


def read_yaml(path: str) -> Any:
    """
    What a YAML or JSON file holds.

    Raises:
        ValueError: it cannot be read, or names something twice.
    """
    try:
        return yaml.load(Path(path).read_text(encoding="utf-8"), _Loader)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path} cannot be read: {' '.join(str(error).split())}.") from error


def as_words(name: str, value: Any) -> list[str]:
    if isinstance(value, list):
        return [f"--{name}", *map(str, value)]
    return [f"--{name}={json.dumps(value) if isinstance(value, dict) else value}"]
