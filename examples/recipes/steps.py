"""Shared steps of the recipes: parse the command line, run scripts, and pretrain a model on all languages."""

import argparse
import csv
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
import yaml

from modeling_xlm_swcm.checkpoints.encoders import check_config
from modeling_xlm_swcm.checkpoints.errors import ConversionError
from modeling_xlm_swcm.checkpoints.reading import read_config, read_json
from modeling_xlm_swcm.conversion import convert
from modeling_xlm_swcm.training.arguments import HelpFormatter
from modeling_xlm_swcm.training.files import write_json
from modeling_xlm_swcm.training.parser import ScriptParser


EXAMPLES = Path(__file__).parent.parent


class RecipeHelpFormatter(HelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keep the lines of the description, which has a command."""


@dataclass(kw_only=True)
class FolderArguments:
    data: Path = field(metadata={"help": "Folder with the data."})
    output_dir: Path = field(metadata={"help": "Folder for all output."})


@dataclass(kw_only=True)
class RecipeArguments(FolderArguments):
    encoder: str = field(metadata={"help": "Encoder to start from: a local folder or a Hub id."})
    pretrain_steps: int = field(
        default=2000, metadata={"help": "Steps of pretraining on denoising and translation. 0 skips pretraining."}
    )
    steps: int = field(default=2000, metadata={"help": "Steps of fine-tuning."})
    learning_rate: float = field(
        default=1e-3,
        metadata={"help": "Peak learning rate of both trainings. Use 1e-4 for an encoder like XLM-R base."},
    )
    max_length: int = field(
        default=256,
        metadata={"help": "Maximum length of sources and targets in tokens, up to the limit of the encoder."},
    )
    license: str | None = field(default=None, metadata={"help": "Licence of the encoder, for the model card."})
    seed: int = field(default=0, metadata={"help": "Random seed."})

    def shared_options(self) -> list[str]:
        """Return the options that every script takes."""
        return ["--seed", str(self.seed), *(["--license", self.license] if self.license else [])]


def parse_folders(kind: type, description: str, files: list[str]) -> tuple[FolderArguments, list[str]]:
    """Parse the command line into a `kind`. Return it and the unknown words. Check that `--data` has the `files`."""
    parser = ScriptParser(kind, description=description, formatter_class=RecipeHelpFormatter)
    args, rest = parser.parse_args_into_dataclasses(return_remaining_strings=True)
    if missing := [name for name in files if not (args.data / name).is_file()]:
        sys.exit(f"error: {args.data / missing[0]} does not exist. Check --data.")
    args.output_dir.mkdir(parents=True, exist_ok=True)
    return args, rest


def parse_recipe(description: str, files: list[str]) -> tuple[RecipeArguments, list[str]]:
    """Parse the command line of a recipe. Return its arguments, and the unknown words for the fine-tuning script."""
    args, rest = parse_folders(RecipeArguments, description, files)
    try:
        config = read_config(args.encoder)
        family = check_config(args.encoder, config)
    except ConversionError as error:
        sys.exit(f"error: {error}")
    args.max_length = min(args.max_length, family.longest_input(config))
    return args, rest


def read_ntrex(data: Path, split: str) -> list[dict[str, str]]:
    """Return the lines of a split, each as a dict by language."""
    with open(data / "ntrex.tsv", encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        return [row for row in rows if row["split"] == split]


def run_script(script: str, *words: str | Path):
    """Run a script of `examples/`, and exit if it fails."""
    command = [sys.executable, str(EXAMPLES / script), *map(str, words)]
    # A model this small is slower with several threads.
    environment = os.environ if torch.cuda.is_available() else {"OMP_NUM_THREADS": "1"} | os.environ
    if code := subprocess.run(command, env=environment).returncode:
        sys.exit(code)


def claim_folder(args: RecipeArguments):
    """Record the arguments in the output folder, and exit if it belongs to other arguments."""
    path, fields = args.output_dir / "recipe.json", {name: str(value) for name, value in vars(args).items()}
    del fields["output_dir"]
    if path.exists() and read_json(path) != fields:
        sys.exit(f"error: {args.output_dir} belongs to other arguments ({path}). Choose another --output_dir.")
    write_json(path, fields)


def make_model(args: RecipeArguments, languages: list[str], parallel: list[dict], validation: list[dict]) -> Path:
    """Convert the encoder, pretrain it on `mono/` and the parallel corpora, and return the folder of the model."""
    converted, pretrained = args.output_dir / "converted", args.output_dir / "pretrained"
    claim_folder(args)
    try:
        convert(args.encoder, converted, overwrite=True, languages=languages, seed=args.seed)
    except ConversionError as error:
        sys.exit(f"error: {error}")
    if args.pretrain_steps == 0:
        return converted
    text = [{"path": str(args.data / "mono" / f"{code}.*.txt"), "language": code} for code in languages]
    corpora = args.output_dir / "corpora.yaml"
    corpora.write_text(yaml.safe_dump({"train": text + parallel, "validation": validation}), encoding="utf-8")
    run_script(
        "pretrain.py",
        EXAMPLES / "presets" / "cpu_small.yaml",
        *("--model_name_or_path", converted, "--data", corpora, "--output_dir", pretrained),
        *("--max_length", args.max_length, "--max_steps", args.pretrain_steps, "--skip_bad_rows"),
        *("--learning_rate", args.learning_rate),
        *("--per_device_eval_batch_size", "32"),
        # A recipe that was stopped continues here.
        *("--resume_from_checkpoint", "last"),
        *args.shared_options(),
    )
    return pretrained
