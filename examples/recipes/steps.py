"""What the recipes have in common: from an encoder to a model that has seen text of every language."""

import csv
import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
import yaml
from transformers import HfArgumentParser

from modeling_xlm_swcm.checkpoints.errors import ConversionError
from modeling_xlm_swcm.checkpoints.reading import read_config
from modeling_xlm_swcm.conversion import convert
from modeling_xlm_swcm.training.results import write_whole


EXAMPLES = Path(__file__).parent.parent


@dataclass(kw_only=True)
class FolderArguments:
    data: Path = field(metadata={"help": "the folder with the data"})
    output_dir: Path = field(metadata={"help": "where everything is written"})


@dataclass(kw_only=True)
class RecipeArguments(FolderArguments):
    encoder: str = field(metadata={"help": "the encoder to start from: folder or Hub id"})
    pretrain_steps: int = field(default=2000, metadata={"help": "steps of denoising and translation; 0 for none"})
    steps: int = field(default=2000, metadata={"help": "steps of fine-tuning"})
    learning_rate: float = field(default=1e-3, metadata={"help": "peak of both; a real encoder wants a tenth of it"})
    max_length: int = field(default=256, metadata={"help": "of sources and targets, where the encoder has as many"})
    license: str | None = field(default=None, metadata={"help": "of the encoder, for the card"})
    seed: int = field(default=0, metadata={"help": "of everything that is drawn"})

    def for_every_script(self) -> list[str]:
        return ["--seed", str(self.seed), *(["--license", self.license] if self.license else [])]


def parse_folders(kind: type, description: str, files: list[str]) -> tuple[FolderArguments, list[str]]:
    """Arguments of a `kind`, and what else was given; `files` have to be there."""
    parser = HfArgumentParser(kind, description=description)
    args, rest = parser.parse_args_into_dataclasses(return_remaining_strings=True)
    if missing := [name for name in files if not (args.data / name).is_file()]:
        sys.exit(f"error: There is no file {args.data / missing[0]}.")
    args.output_dir.mkdir(parents=True, exist_ok=True)
    return args, rest


def parse(description: str, files: list[str]) -> tuple[RecipeArguments, list[str]]:
    """The recipe's arguments, and what else was given, which goes to the fine-tuning."""
    args, rest = parse_folders(RecipeArguments, description, files)
    try:
        config = read_config(args.encoder)
    except ConversionError as error:
        sys.exit(f"error: {error}")
    args.max_length = min(args.max_length, config["max_position_embeddings"] - config["pad_token_id"] - 1)
    return args, rest


def read_ntrex(data: Path, split: str) -> list[dict[str, str]]:
    """The lines of a split, by language."""
    with open(data / "ntrex.tsv", encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        return [row for row in rows if row["split"] == split]


def run(script: str, *words: str | Path):
    """A script of `examples/`, and the end of the recipe where it fails."""
    command = [sys.executable, str(EXAMPLES / script), *map(str, words)]
    # on models this small, threads wait for each other more than they work
    environment = os.environ if torch.cuda.is_available() else {"OMP_NUM_THREADS": "1"} | os.environ
    if code := subprocess.run(command, env=environment).returncode:
        sys.exit(code)


def claim(args: RecipeArguments):
    """Write down what the output folder is of: what is there of other arguments must not be gone on with."""
    path, fields = args.output_dir / "recipe.json", {name: str(value) for name, value in vars(args).items()}
    del fields["output_dir"]
    if path.exists() and json.loads(path.read_text(encoding="utf-8")) != fields:
        sys.exit(f"error: {args.output_dir} is of a recipe with other arguments ({path}): give another --output_dir.")
    write_whole(path, json.dumps(fields, indent=1) + "\n")


def make_model(args: RecipeArguments, languages: list[str], parallel: list[dict], validation: list[dict]) -> Path:
    """Convert the encoder, and train it on `mono/` and the given parallel corpora; the folder of the model."""
    converted, pretrained = args.output_dir / "converted", args.output_dir / "pretrained"
    claim(args)
    try:
        convert(args.encoder, converted, overwrite=True, languages=languages, seed=args.seed)
    except ConversionError as error:
        sys.exit(f"error: {error}")
    if args.pretrain_steps == 0:
        return converted
    text = [{"path": str(args.data / "mono" / f"{code}.*.txt"), "language": code} for code in languages]
    corpora = args.output_dir / "corpora.yaml"
    corpora.write_text(yaml.safe_dump({"train": text + parallel, "validation": validation}), encoding="utf-8")
    run(
        "pretrain.py",
        EXAMPLES / "presets" / "cpu_small.yaml",
        *("--model_name_or_path", converted, "--data", corpora, "--output_dir", pretrained),
        *("--max_length", args.max_length, "--max_steps", args.pretrain_steps, "--skip_bad_rows"),
        *("--learning_rate", args.learning_rate),
        *("--per_device_eval_batch_size", "32"),
        *("--resume_from_checkpoint", "last"),  # a recipe that was stopped goes on here
        *args.for_every_script(),
    )
    return pretrained
