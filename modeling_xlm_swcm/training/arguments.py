"""Command-line arguments of the training scripts, with defaults from a YAML or JSON file."""

import argparse
import difflib
import json
import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

import torch
import transformers
import yaml
from transformers import Seq2SeqTrainingArguments
from transformers.integrations import get_available_reporting_integrations
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from modeling_xlm_swcm.checkpoints.reading import RepeatedKeyError, make_dict
from modeling_xlm_swcm.corpora.files import check_regular

from .option_help import FINETUNE_HELP, HELP, NO_BATCH_SIZE_SEARCH, HelpFormatter, set_help
from .parser import SEE_HELP, ScriptParser


# Largest value of numbers that are not negative.
RANGES: dict[str, float] = {
    "learning_rate": math.inf,
    "weight_decay": math.inf,
    "adam_epsilon": math.inf,
    "max_grad_norm": math.inf,
    "warmup_steps": math.inf,
    "num_train_epochs": math.inf,
    "eval_delay": math.inf,
    "neftune_noise_alpha": math.inf,
    "scheduled_sampling": 1,
    "dataloader_num_workers": 256,
    "seed": 2**32 - 1,
    "data_seed": 2**32 - 1,
}
BELOW_ONE = ("adam_beta1", "adam_beta2", "label_smoothing_factor")
# steps, or a share of all steps
INTERVALS = ("logging_steps", "eval_steps", "save_steps")
COUNTS = (
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
    "eval_accumulation_steps",
    "save_total_limit",
    "torch_empty_cache_steps",
    "generation_max_length",
    "generation_num_beams",
    "dataloader_prefetch_factor",
    "ddp_bucket_cap_mb",
    "ddp_timeout",
)
# Memory and time grow with the number of beams.
MAX_BEAMS = 1024
LARGEST = {
    "per_device_train_batch_size": 2**20,
    "per_device_eval_batch_size": 2**20,
    "generation_num_beams": MAX_BEAMS,
}

# endings of a file of settings
SETTINGS = (".yaml", ".yml", ".json")
QUOTE_TEXT = "Without quotes, YAML does not read no, yes, on, off, numbers and dates as text. Put the text in quotes."


def has_fast_bf16() -> bool:
    """Return True if the GPU, or else the CPU, computes in bfloat16 natively."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.cpu.get_capabilities().get("avx512_bf16") or torch.cpu.get_capabilities().get("amx_bf16"))


@dataclass
class ModelArguments:
    """Options that select the model to train and how much of it is trained."""

    model_name_or_path: str = field(metadata={"help": "Model to start from: a local folder or a Hub id."})
    lora: bool = field(
        default=False,
        metadata={"help": "Train LoRA adapters instead of all weights, and merge them into the saved weights."},
    )
    lora_rank: int = field(default=16, metadata={"help": "Rank of the LoRA adapters."})
    freeze_encoder: bool = field(
        default=False, metadata={"help": "Train the decoder only. Encoder and embeddings keep their weights."}
    )
    save_dtype: str | None = field(
        default=None,
        metadata={
            "help": "Data type of the saved weights. Weights always train in float32. Default: the data type of the "
            "model to start from.",
            "choices": ["float32", "bfloat16", "float16"],
        },
    )
    license: str | None = field(
        default=None,
        metadata={
            "help": "Licence for the model card, for example mit. Default: the licence in the conversion report."
        },
    )
    lora_train_embeddings: str = field(
        default="none",
        metadata={
            "help": "Word embeddings to train with the LoRA adapters. none: no embeddings. tags: language tags. new: "
            "language tags and the tokens that `xlm-swcm vocab extend` added. The path of a "
            "vocabulary_report.json: as new, for the extension in this report."
        },
    )
    lora_merge: bool = field(
        default=True,
        metadata={"help": "Merge the LoRA adapters into the saved weights. false: save only the adapters."},
    )

    def __post_init__(self):
        check_counts(self, "lora_rank")
        if self.lora_rank != ModelArguments.lora_rank and not self.lora:
            raise ValueError("--lora_rank needs --lora. Add --lora.")
        if self.lora_train_embeddings != "none" and not self.lora:
            raise ValueError("--lora_train_embeddings needs --lora. Add --lora.")
        if self.lora_train_embeddings != "none" and self.freeze_encoder:
            raise ValueError(
                "--freeze_encoder keeps the embeddings fixed. Remove --freeze_encoder or --lora_train_embeddings."
            )
        if not self.lora_merge and not self.lora:
            raise ValueError("--lora_merge false needs --lora. Add --lora.")
        if not self.lora_merge and self.save_dtype is not None:
            raise ValueError("--save_dtype has no effect on adapters. Remove --save_dtype or --lora_merge false.")


class CheckedOptions:
    """
    Checks of options for subclasses of [`~transformers.TrainingArguments`].

    Attributes:
        help_texts (`dict[str, str]`):
            Help of the scripts in place of Transformers' help. An empty text hides the option.
        unsupported (`dict[str, str]`):
            Options that a script hides from its help, each with the error if it is set. An empty error means that the
            option has no effect. The dataclass of a script's own options adds such options.
    """

    help_texts: ClassVar[dict[str, str]] = HELP
    unsupported: ClassVar[dict[str, str]] = {"auto_find_batch_size": NO_BATCH_SIZE_SEARCH}

    def __post_init__(self):
        """Check the options before and after Transformers reads them."""
        if self.output_dir == "":
            raise ValueError("--output_dir is empty. Name a folder.")
        check_counts(self, *(name for name in COUNTS if hasattr(self, name)))
        check_numbers(self)
        check_combinations(self)
        if self.auto_find_batch_size:
            raise ValueError(NO_BATCH_SIZE_SEARCH)
        super().__post_init__()
        check_evaluation_strategy(self)
        # Transformers does not list flyte among the available integrations.
        if missing := set(self.report_to) - {*get_available_reporting_integrations(), "flyte"}:
            name = missing.pop()
            raise ValueError(f"--report_to {name} is not available. Correct the name, or install its package.")


@dataclass
class TrainingArguments(CheckedOptions, Seq2SeqTrainingArguments):
    r"""
    [`~transformers.Seq2SeqTrainingArguments`] with defaults for XLM-SWCM and with scheduled sampling.

    The rate is the paper's value. Adam's beta2 is the value of mBART and NLLB. The long warmup protects the copied
    weights: in 400 steps, a warmup of 30 % gives a lower loss than a warmup of 10 %.

    Args:
        learning_rate (`float`, *optional*, defaults to 1e-4):
            Peak learning rate.
        warmup_steps (`float`, *optional*, defaults to 0.3):
            Steps until the learning rate reaches its peak. A number below 1 is a share of all steps.
        adam_beta2 (`float`, *optional*, defaults to 0.98):
            Decay rate of the second moment in Adam.
        scheduled_sampling (`float`, *optional*, defaults to 0.0):
            Final share of decoder inputs that are replaced by the model's predictions. The share grows linearly from
            0 (Mihaylova and Martins, 2019).
    """

    help_texts: ClassVar[dict[str, str]] = HELP | FINETUNE_HELP
    learning_rate: float = field(
        default=1e-4,
        metadata={"help": "Peak learning rate. For a small encoder or LoRA, try 5e-4 first."},
    )
    warmup_steps: float = field(
        default=0.3,
        metadata={"help": "Steps until the learning rate reaches its peak. A number below 1 is a share of all steps."},
    )
    adam_beta2: float = field(default=0.98, metadata={"help": "Decay rate of the second moment in Adam."})
    remove_unused_columns: bool = field(
        default=False,
        metadata={
            "help": "Drop columns that the model does not accept. Keep the default: some collators need extra "
            "columns, for example `epoch`."
        },
    )
    ddp_find_unused_parameters: bool | None = field(
        default=False,
        metadata={
            "help": "Search for unused parameters in each distributed step. Not needed: each trained parameter gets a "
            "gradient."
        },
    )
    scheduled_sampling: float = field(
        default=0.0,
        metadata={
            "help": "Final share of decoder inputs that are replaced by the model's predictions. The share grows "
            "linearly from 0 (Mihaylova and Martins, 2019)."
        },
    )


def check_numbers(args: transformers.TrainingArguments):
    """
    Check that numbers are in their ranges. `None` is allowed.

    Raises:
        ValueError: if a number is out of range.
    """
    for name, most in RANGES.items():
        value = getattr(args, name, None)
        if value is not None and not (0 <= value <= most and math.isfinite(value)):
            rule = f"between 0 and {most}" if math.isfinite(most) else "at least 0 and finite"
            raise ValueError(f"--{name} must be {rule} (got {value}). Use another number.")
    for name, most in LARGEST.items():
        if (value := getattr(args, name, None)) is not None and value > most:
            raise ValueError(f"--{name} must be at most {most} (got {value}). Use a smaller number.")
    for name in BELOW_ONE:
        if not 0 <= getattr(args, name) < 1:
            raise ValueError(
                f"--{name} must be at least 0 and below 1 (got {getattr(args, name)}). Use another number."
            )
    if args.max_steps < 1 and args.max_steps != -1:
        raise ValueError(f"--max_steps must be at least 1 (got {args.max_steps}). Leave it out to train whole epochs.")
    for name in INTERVALS:
        if (value := getattr(args, name)) is not None and not (value > 0 and math.isfinite(value)):
            raise ValueError(f"--{name} must be above 0 and finite (got {value}). Use another number.")


def check_evaluation_strategy(args: transformers.TrainingArguments):
    """
    Check that the training evaluates the model if an option needs it.

    Raises:
        ValueError: if the training does not evaluate the model.
    """
    if args.eval_strategy != IntervalStrategy.NO:
        return
    needs = {
        "--load_best_model_at_end": args.load_best_model_at_end,
        "--save_strategy best": args.save_strategy == SaveStrategy.BEST,
        "--eval_on_start": args.eval_on_start,
    }
    for option, is_set in needs.items():
        if is_set:
            raise ValueError(f"{option} needs an evaluation during the training. Pass --eval_strategy steps or epoch.")


def check_combinations(args: transformers.TrainingArguments):
    """
    Check options against each other.

    Raises:
        ValueError: if options do not work together.
    """
    if args.fp16 and args.bf16:
        raise ValueError("--fp16 and --bf16 do not work together. Pass only one of them.")
    save, evaluate = SaveStrategy(args.save_strategy).value, IntervalStrategy(args.eval_strategy).value
    if args.load_best_model_at_end and save not in (evaluate, SaveStrategy.BEST.value):
        raise ValueError(
            f"--load_best_model_at_end needs the same --save_strategy and --eval_strategy (got {save} and "
            f"{evaluate}). Change one of them."
        )


def check_counts(arguments: Any, *names: str):
    """
    Check that integer options are at least 1. `None` is allowed.

    Raises:
        ValueError: if one of the values is below 1.
    """
    for name in names:
        if (value := getattr(arguments, name)) is not None and value < 1:
            raise ValueError(f"--{name} must be at least 1 (got {value}). Use a larger number.")


def check_beams(num_beams: int):
    """
    Check the number of beams.

    Raises:
        ValueError: if it is not between 1 and `MAX_BEAMS`.
    """
    if not 1 <= num_beams <= MAX_BEAMS:
        raise ValueError(f"--num_beams must be between 1 and {MAX_BEAMS} (got {num_beams}). Use another number.")


def parse_arguments(*classes: type, argv: list[str] | None = None) -> tuple[Any, ...]:
    """
    Parse the command line into one object of each dataclass. Exit with a message if an option is wrong.

    The first argument may be a YAML or JSON file of settings, which the other arguments override. Training uses
    bfloat16 by default if the GPU or CPU computes in it natively.

    Args:
        classes (`type`):
            Dataclasses whose fields are the options.
        argv (`list[str]`, *optional*, defaults to `sys.argv[1:]`):
            Arguments to parse.

    Returns:
        `tuple`: one object of each dataclass.
    """
    # The usage that argparse writes by itself lists all options, which fills a screen.
    usage = "%(prog)s [SETTINGS.yaml|SETTINGS.json] [OPTIONS]. Use --help to list the options."
    parser = ScriptParser(classes, usage=usage, formatter_class=HelpFormatter)
    argv = sys.argv[1:] if argv is None else argv
    try:
        if argv and argv[0].endswith(SETTINGS) and not argv[0].startswith("-"):
            argv = read_settings(parser, argv[0]) + argv[1:]
        check_options(parser, argv, set_help(parser, classes))
        # Without use_cpu, Transformers checks bf16 against a GPU.
        parser.set_defaults(use_cpu=not torch.cuda.is_available())
        parser.set_defaults(bf16=has_fast_bf16() and not parser.parse_known_args(argv)[0].fp16)
        return parser.parse_args_into_dataclasses(argv)
    except json.JSONDecodeError as error:
        sys.exit(f"error: {error.doc} is not valid JSON: {error.msg}. Correct this value.")
    # Transformers raises errors of many classes for values that it cannot use.
    except Exception as error:
        sys.exit(f"error: {' '.join(str(error).split()) or type(error).__name__}")


def parse_options(options: type, argv: list[str] | None = None) -> Any:
    """
    Parse the command line of a script that does not train into one object.

    Args:
        options (`type`):
            Dataclass whose fields are the options.
        argv (`list[str]`, *optional*, defaults to `sys.argv[1:]`):
            Arguments to parse.

    Raises:
        ValueError: if an option is wrong.
    """
    parser = ScriptParser(options, formatter_class=HelpFormatter)
    argv = sys.argv[1:] if argv is None else argv
    check_options(parser, argv)
    (parsed,) = parser.parse_args_into_dataclasses(argv)
    return parsed


def check_options(parser: ScriptParser, argv: list[str], unsupported: dict[str, str] | None = None):
    """
    Check that each word of a command line is a supported option of `parser` or a value of an option.

    Raises:
        ValueError: if a word is neither an option nor a value, or if an option in `unsupported` is set.
    """
    options = parser._option_string_actions
    # No option takes several YAML files.
    if len(argv) > 1 and argv[-1].endswith((".yaml", ".yml")) and not argv[-2].startswith("--"):
        raise ValueError(describe_extra_word(argv[-1], argv))
    for word in argv:
        name = word.partition("=")[0]
        # argparse accepts the beginning of an option.
        if name.startswith("--") and not any(option.startswith(name) for option in options):
            raise ValueError(f"Unknown option {name}. {suggest(name, options)}")
    # Without defaults, the value of an option is None unless the user sets it.
    without_defaults = argparse.Namespace(**dict.fromkeys(unsupported or {}))
    given, words = parser.parse_known_args(argv, without_defaults)
    if words:
        raise ValueError(describe_extra_word(words[0], argv))
    for name, message in (unsupported or {}).items():
        if message and getattr(given, name):
            raise ValueError(message)


def describe_extra_word(word: str, argv: list[str]) -> str:
    """Return the error for a word that is not the value of an option."""
    if word.endswith(SETTINGS):
        return f"Unexpected argument {word}. Write the file of settings before all options."
    option, values = None, []
    for each in argv:
        if each.startswith("--"):
            option, values = each, []
            continue
        values.append(each)
        if each == word and option and len(values) > 1:
            advice = 'Pass one file, or a pattern in quotes, such as "*.tsv".'
            advice = advice if option.endswith("file") else "Pass one value."
            return f"{option} takes one value (got {' '.join(values)}). {advice}"
    return f"Unexpected argument {word}. {SEE_HELP}"


def suggest(name: str, known: Iterable[str]) -> str:
    """Return a hint for an unknown option."""
    if name == "--max_new_tokens":
        # Transformers' name for the maximum length of an output.
        name = "--max_target_length" if "--max_target_length" in known else "--max_length"
    near = difflib.get_close_matches(name, known, 1, cutoff=0.75)
    return f"Did you mean {near[0]}?" if near else SEE_HELP


def read_settings(parser: ScriptParser, path: str) -> list[str]:
    """
    Convert a file of settings to words of a command line, so that one parser checks both.

    Raises:
        ValueError: if the file cannot be read or has an unknown setting.
    """
    settings = read_yaml(path)
    if not isinstance(settings, dict):
        raise ValueError(f"{path} must contain one setting per line (example: learning_rate: 0.0001).")
    known = {action.dest for action in parser._actions}
    if unknown := sorted(map(str, settings.keys() - known)):
        raise ValueError(f"{path} has the unknown setting {unknown[0]}. {suggest(unknown[0], known)}")
    types = {option.name: str(option.type) for options in parser.dataclass_types for option in fields(options)}
    for name, value in settings.items():
        values = value if isinstance(value, list) else [value]
        if "bool" not in types.get(name, "bool") and any(isinstance(item, bool) for item in values):
            raise ValueError(f"{path} sets {name} to {value!r}. {QUOTE_TEXT}")
    return [word for name, value in settings.items() if value is not None for word in as_words(name, value)]


class _Loader(yaml.SafeLoader):
    """A safe YAML loader that refuses repeated keys."""

    def construct_mapping(self, node, deep=False):
        names = [key.value for key, _ in node.value]
        if repeated := next((name for name in names if names.count(name) > 1), None):
            raise yaml.constructor.ConstructorError(None, None, f"{repeated} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


def read_yaml(path: str) -> Any:
    """
    Read a YAML or JSON file.

    Raises:
        ValueError: if the file cannot be read or repeats a key.
    """
    check_regular(path, allow_stdin=True)
    try:
        text = Path(path).read_text(encoding="utf-8")
        # YAML reads some JSON otherwise, for example escaped characters.
        return json.loads(text, object_pairs_hook=make_dict) if path.endswith(".json") else yaml.load(text, _Loader)
    except FileNotFoundError as error:
        raise ValueError(f"{path} does not exist. Check the path.") from error
    except RepeatedKeyError as error:
        raise ValueError(
            f"{path} cannot be read: {json.loads(str(error))} is given twice. Correct the file."
        ) from error
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path} cannot be read: {' '.join(str(error).split())}. Correct the file.") from error


def as_words(name: str, value: Any) -> list[str]:
    """Return a setting as words of a command line."""
    if isinstance(value, list):
        return [f"--{name}", *map(str, value)]
    return [f"--{name}={json.dumps(value) if isinstance(value, dict) else value}"]
