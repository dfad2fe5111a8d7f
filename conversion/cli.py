"""The command line, `xlm-swcm`: parses, calls, prints."""

import contextlib
import traceback
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from typer.core import TyperCommand

from .checkpoint import first_line
from .from_encoder import convert as convert_checkpoint
from .hub import upload
from .inspection import inspect as inspect_checkpoint
from .options import CHOICES
from .push import check_destination, collect


LayerMap = StrEnum("LayerMap", CHOICES["layer_map"])
DecoderInit = StrEnum("DecoderInit", CHOICES["decoder_init"])
NormalLayers = StrEnum("NormalLayers", CHOICES["normal_layers"])
WeightSharing = StrEnum("WeightSharing", CHOICES["weight_sharing"])
Dtype = StrEnum("Dtype", ("float32", "bfloat16", "float16"))

License = Annotated[str | None, typer.Option(help="Of the base model, where its own card names none.")]
Private = Annotated[bool, typer.Option("--private", help="Make the repository private.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]

main = typer.Typer(add_completion=False, no_args_is_help=True, help="Models that write, made from XLM-R encoders.")


@main.callback()
def _commands():
    # with a callback, typer keeps the name of a single command
    pass


class SeveralLanguages(TyperCommand):
    """Lets `--languages bo ug kk` take several words, as argparse users write it."""

    def parse_args(self, ctx, args: list[str]) -> list[str]:
        joined = []
        for argument in args:
            if joined and joined[-1] == "--languages":
                joined[-1] = f"--languages={argument}"
            elif joined and joined[-1].startswith("--languages=") and not argument.startswith("-"):
                joined[-1] += f" {argument}"
            else:
                joined.append(argument)
        return super().parse_args(ctx, joined)


@contextlib.contextmanager
def one_sentence_errors(debug: bool) -> Iterator[None]:
    """Say what went wrong in one sentence and exit with 1, with the traceback before it under --debug."""
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            traceback.print_exc()
        interrupted = isinstance(error, KeyboardInterrupt)
        Console(stderr=True, soft_wrap=True, highlight=False).print(
            f"error: {'interrupted; nothing was written.' if interrupted else first_line(error)}", markup=False
        )
        raise typer.Exit(1) from error


@main.command(cls=SeveralLanguages)
def convert(
    source: Annotated[str, typer.Argument(help="The encoder: Hub id or folder.")],
    output: Annotated[Path, typer.Argument(help="The folder to write.")],
    revision: Annotated[str | None, typer.Option(help="Revision of SOURCE on the Hub.")] = None,
    languages: Annotated[
        str, typer.Option(metavar="CODE...", help="Languages that get a tag; last, or before another option.")
    ] = "",
    normal_layer_interval: Annotated[int, typer.Option(help="A normal layer after every so many custom ones.")] = 3,
    layer_map: Annotated[LayerMap, typer.Option(help="Which encoder layers a custom layer is made from.")] = "same",
    decoder_init: Annotated[DecoderInit, typer.Option(help="Random: no weight is copied.")] = "shared",
    normal_layers: Annotated[
        NormalLayers, typer.Option(help="Copy: of the custom layer before it. None: no normal layers.")
    ] = "random",
    weight_sharing: Annotated[
        WeightSharing, typer.Option(help="Tied: custom layers are the encoder's layers, trained as one.")
    ] = "init",
    dtype: Annotated[Dtype | None, typer.Option(help="Of the result; by default the source's.")] = None,
    seed: Annotated[int, typer.Option(help="Of what starts random.")] = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Do everything but write.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUTPUT if it is there.")] = False,
    push_to_hub: Annotated[str | None, typer.Option(metavar="REPO", help="Push OUTPUT to owner/name.")] = None,
    license: License = None,
    private: Private = False,
    debug: Debug = False,
):
    """Make an encoder-decoder from an XLM-R-shaped encoder."""
    with one_sentence_errors(debug):
        if push_to_hub is not None:
            check_destination(push_to_hub, source, revision, license)
        report = convert_checkpoint(
            source,
            output,
            overwrite=overwrite,
            dry_run=dry_run,
            license=license,
            revision=revision,
            languages=languages.split(),
            normal_layer_interval=normal_layer_interval,
            layer_map=layer_map.value,
            decoder_init=decoder_init.value,
            normal_layers=normal_layers.value,
            weight_sharing=weight_sharing.value,
            dtype=dtype.value if dtype else None,
            seed=seed,
        )
        console = Console()
        report.print(console)
        console.print("Nothing was written (--dry-run)." if dry_run else f"Written to {output}.")
        if push_to_hub is not None and not dry_run:
            files = list_files(console, output, push_to_hub, license)
            console.print(f"Pushed: {upload(files, push_to_hub, private)}")


def list_files(console: Console, folder: Path, repo_id: str, license: str | None) -> dict[str, Path | bytes]:
    files = collect(folder, repo_id, license)
    table = Table("file", "size", title=f"{folder} → {repo_id}", title_justify="left", box=None)
    for name, content in files.items():
        table.add_row(name, decimal(len(content) if isinstance(content, bytes) else content.stat().st_size))
    console.print(table)
    return files


@main.command()
def push(
    folder: Annotated[Path, typer.Argument(help="The folder with model and tokenizer.")],
    repo_id: Annotated[str, typer.Argument(metavar="REPO", help="owner/name; made if it does not exist.")],
    license: License = None,
    private: Private = False,
    revision: Annotated[str | None, typer.Option(help="Branch to push to; made if it does not exist.")] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request.")] = False,
    commit_message: Annotated[str, typer.Option(help="First line of the commit.")] = "Upload XLM-SWCM model",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and list, and send nothing.")] = False,
    debug: Debug = False,
):
    """Check a model and send it to the Hub, with a filled model card, in one commit."""
    with one_sentence_errors(debug):
        console = Console(soft_wrap=True, highlight=False)
        files = list_files(console, folder, repo_id, license)
        if dry_run:
            console.print("Nothing was sent (--dry-run).")
        else:
            console.print(f"Pushed: {upload(files, repo_id, private, revision, create_pr, commit_message)}")


@main.command()
def inspect(
    source: Annotated[str, typer.Argument(help="Hub id or folder of an XLM-SWCM model.")],
    revision: Annotated[str | None, typer.Option(help="Revision of SOURCE on the Hub.")] = None,
    debug: Debug = False,
):
    """Show what a model is, without downloading its weights."""
    with one_sentence_errors(debug):
        inspect_checkpoint(source, revision).print(Console(soft_wrap=True))
