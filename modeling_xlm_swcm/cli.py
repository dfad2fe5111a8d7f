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

from modeling_xlm_swcm.checkpoints.code import replace_code
from modeling_xlm_swcm.checkpoints.errors import ConversionError, first_line
from modeling_xlm_swcm.checkpoints.inspection import inspect as inspect_checkpoint
from modeling_xlm_swcm.checkpoints.inspection import read_folder_config
from modeling_xlm_swcm.conversion.from_encoder import convert as convert_checkpoint
from modeling_xlm_swcm.conversion.options import CHOICES
from modeling_xlm_swcm.conversion.released import convert_released as convert_release
from modeling_xlm_swcm.export.export import QUANTIZATIONS
from modeling_xlm_swcm.export.export import export as export_checkpoint
from modeling_xlm_swcm.hub.push import check_destination, collect
from modeling_xlm_swcm.hub.upload import upload
from modeling_xlm_swcm.vocabulary.extend import INITS
from modeling_xlm_swcm.vocabulary.extend import extend as extend_vocabulary
from modeling_xlm_swcm.vocabulary.report import VocabularyReport, check_plot
from modeling_xlm_swcm.vocabulary.trim import trim as trim_vocabulary


LayerMap = StrEnum("LayerMap", CHOICES["layer_map"])

DecoderInit = StrEnum("DecoderInit", CHOICES["decoder_init"])

NormalLayers = StrEnum("NormalLayers", CHOICES["normal_layers"])

WeightSharing = StrEnum("WeightSharing", CHOICES["weight_sharing"])

Init = StrEnum("Init", INITS)

Quantization = StrEnum("Quantization", QUANTIZATIONS)

Dtype = StrEnum("Dtype", ("float32", "bfloat16", "float16"))

MAX_SEED = 2**32 - 1

License = Annotated[str | None, typer.Option(help="Of the base model, where its own card names none.")]

Private = Annotated[bool, typer.Option("--private", help="Make the repository private.")]

Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]

main = typer.Typer(add_completion=False, no_args_is_help=True, help="Models that write, made from XLM-R encoders.")

vocab = typer.Typer(no_args_is_help=True, help="Extend or trim the vocabulary of an encoder or XLM-SWCM checkpoint.")

main.add_typer(vocab, name="vocab")


class SeveralValues(TyperCommand):
    """Lets `--languages bo ug kk` take several words, as argparse users write it."""

    options = ("--languages", "--corpus", "--eval")

    def parse_args(self, ctx, args: list[str]) -> list[str]:
        repeated, option = [], None
        for argument in args:
            if argument.startswith("-"):
                name = argument.partition("=")[0]
                option = name if name in self.options else None
            elif option and repeated[-1] != option:
                repeated.append(option)
            repeated.append(argument)
        return super().parse_args(ctx, repeated)


@contextlib.contextmanager
def one_sentence_errors(debug: bool, when_interrupted: str = "nothing was written.") -> Iterator[None]:
    """Say what went wrong in one sentence and exit with 1, with the traceback before it under --debug."""
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            traceback.print_exc()
        interrupted = isinstance(error, KeyboardInterrupt)
        Console(stderr=True, soft_wrap=True, highlight=False).print(
            f"error: {f'interrupted; {when_interrupted}' if interrupted else first_line(error)}", markup=False
        )
        raise typer.Exit(1) from error


def state_of(output: Path, dry_run: bool) -> str:
    return "nothing was written." if dry_run else f"{output} is written."


@main.command(cls=SeveralValues)
def convert(
    source: Annotated[str, typer.Argument(help="The encoder: Hub id or folder.")],
    output: Annotated[Path, typer.Argument(help="The folder to write.")],
    revision: Annotated[str | None, typer.Option(help="Revision of SOURCE on the Hub.")] = None,
    languages: Annotated[
        list[str], typer.Option(metavar="CODE...", help="Languages that get a tag; last, or before another option.")
    ] = (),
    normal_layer_interval: Annotated[
        int, typer.Option(help="A normal layer after every so many custom ones but the last.")
    ] = 3,
    layer_map: Annotated[LayerMap, typer.Option(help="Which encoder layers a custom layer is made from.")] = "same",
    decoder_init: Annotated[
        DecoderInit | None,
        typer.Option(
            help="Silent: the decoder starts as the encoder is. Shared: as in the paper. Random: no copies. Default: "
            "silent, or shared with tied, interleaved or copy."
        ),
    ] = None,
    normal_layers: Annotated[
        NormalLayers, typer.Option(help="Copy: of the custom layer before it. None: no normal layers.")
    ] = "random",
    weight_sharing: Annotated[
        WeightSharing, typer.Option(help="Tied: custom layers are the encoder's layers, trained as one.")
    ] = "init",
    dtype: Annotated[Dtype | None, typer.Option(help="Of the result; by default the source's.")] = None,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Of what starts random.")] = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Do everything but write.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUTPUT if it is there.")] = False,
    push_to_hub: Annotated[str | None, typer.Option(metavar="REPO", help="Push OUTPUT to owner/name.")] = None,
    license: License = None,
    private: Private = False,
    debug: Debug = False,
):
    """Make an encoder-decoder from an XLM-R-shaped encoder."""
    with one_sentence_errors(debug):
        if private and push_to_hub is None:
            raise ConversionError("--private is of the repository that --push-to-hub names; give that, too.")
        if push_to_hub is not None:
            check_destination(push_to_hub, source, revision, license)
        report = convert_checkpoint(
            source,
            output,
            overwrite=overwrite,
            dry_run=dry_run,
            license=license,
            revision=revision,
            languages=" ".join(languages).split(),
            normal_layer_interval=normal_layer_interval,
            layer_map=layer_map.value,
            decoder_init=decoder_init.value if decoder_init else None,
            normal_layers=normal_layers.value,
            weight_sharing=weight_sharing.value,
            dtype=dtype.value if dtype else None,
            seed=seed,
        )
    with one_sentence_errors(debug, state_of(output, dry_run)):
        console = Console()
        report.print(console)
        if not languages:
            console.print("No language has a tag; --languages bo zh, for two, would give them one each.")
        console.print("Nothing was written (--dry-run)." if dry_run else f"Written to {output}.")
        if push_to_hub is not None and not dry_run:
            files = list_files(console, output, push_to_hub, license)
            console.print(f"Pushed: {upload(files, push_to_hub, private)}", soft_wrap=True)


@main.command(cls=SeveralValues)
def convert_released(
    path: Annotated[Path, typer.Argument(help="The released file of weights.")],
    output: Annotated[Path, typer.Argument(help="The folder to write.")],
    encoder: Annotated[str, typer.Option(help="Hub id or folder of its encoder, for config and tokenizer.")],
    languages: Annotated[
        list[str],
        typer.Option(metavar="CODE...", help="Languages that it has tags for; last, or before another option."),
    ] = (),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUTPUT if it is there.")] = False,
    debug: Debug = False,
):
    """Make a checkpoint of the weights that the paper's authors released."""
    with one_sentence_errors(debug):
        codes = " ".join(languages).split()
        report = convert_release(path, encoder, output, languages=codes, overwrite=overwrite)
        console = Console()
        report.print(console)
        console.print(f"Written to {output}.")


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
    with one_sentence_errors(debug, "push again: what has arrived is not sent twice."):
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


@main.command()
def refresh(
    folder: Annotated[Path, typer.Argument(help="Folder of an XLM-SWCM model.")],
    debug: Debug = False,
):
    """Replace the code that travels with a saved model with the code of the installed package."""
    with one_sentence_errors(debug):
        changed = replace_code(folder, read_folder_config(folder))
        console = Console(soft_wrap=True, highlight=False)
        console.print(f"Replaced in {folder}: {', '.join(changed)}." if changed else f"{folder} is up to date.")


@main.command()
def export(
    folder: Annotated[Path, typer.Argument(help="The folder with model and tokenizer.")],
    output: Annotated[Path, typer.Argument(help="The folder to write.")],
    quantize: Annotated[Quantization, typer.Option(help="Int8: smaller and faster, with other roundings.")] = "none",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUTPUT if it is there.")] = False,
    debug: Debug = False,
):
    """Write a model that runs on a CPU with OpenVINO, without PyTorch."""
    with one_sentence_errors(debug):
        files = export_checkpoint(folder, output, quantize=quantize.value, overwrite=overwrite)
        console = Console(soft_wrap=True, highlight=False)
        console.print(f"Written to {output}: {', '.join(f'{name} ({decimal(size)})' for name, size in files.items())}")


Checkpoint = Annotated[str, typer.Argument(help="An encoder or XLM-SWCM model: Hub id or folder.")]

Output = Annotated[Path, typer.Argument(help="The folder to write.")]

TextFiles = Annotated[
    list[str],
    typer.Option(
        "--corpus",
        metavar="FILE...",
        help="Text, a sentence or paragraph a line: bo=FILE, or a file named by its language up to the first dot. "
        "Several; last, or before another option.",
    ),
]

EvalFiles = Annotated[
    list[str], typer.Option("--eval", metavar="FILE...", help="Text to measure with; by default the corpus.")
]

Plot = Annotated[Path | None, typer.Option(help="Draw tokens per word and <unk> before and after, as a PNG.")]

Revision = Annotated[str | None, typer.Option(help="Revision of CHECKPOINT on the Hub.")]

DryRun = Annotated[bool, typer.Option("--dry-run", help="Do everything but write.")]

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace OUTPUT if it is there.")]


@vocab.command(cls=SeveralValues)
def extend(
    checkpoint: Checkpoint,
    output: Output,
    corpus: TextFiles,
    size: Annotated[int, typer.Option(help="Pieces to learn; those that the vocabulary lacks are added.")],
    init: Annotated[Init, typer.Option(help="How the rows of new pieces start.")] = "mean-of-pieces",
    evaluate: EvalFiles = (),
    plot: Plot = None,
    seed: Annotated[
        int, typer.Option(min=0, max=MAX_SEED, help="Of the sample to learn from, and of random rows.")
    ] = 0,
    revision: Revision = None,
    dry_run: DryRun = False,
    overwrite: Overwrite = False,
    debug: Debug = False,
):
    """Learn new pieces from text: scripts that XLM-R cannot read, words that it cuts too small."""
    with one_sentence_errors(debug):
        if plot is not None:
            check_plot(plot)
        report = extend_vocabulary(
            checkpoint,
            output,
            corpus=corpus,
            size=size,
            init=init.value,
            evaluate=evaluate,
            revision=revision,
            seed=seed,
            overwrite=overwrite,
            dry_run=dry_run,
        )
    show(report, output, plot, dry_run, debug)


@vocab.command(cls=SeveralValues)
def trim(
    checkpoint: Checkpoint,
    output: Output,
    corpus: TextFiles,
    min_count: Annotated[int | None, typer.Option(help="Keep pieces that occur so often.")] = None,
    size: Annotated[int | None, typer.Option(help="Keep so many pieces.")] = None,
    coverage: Annotated[
        float | None,
        typer.Option(
            help="Keep what makes up this share of each language's tokens; 0.9999 if none of the three is given."
        ),
    ] = None,
    pad_to_multiple_of: Annotated[int, typer.Option(help="Of the rows; those added are never written.")] = 1,
    evaluate: EvalFiles = (),
    plot: Plot = None,
    revision: Revision = None,
    dry_run: DryRun = False,
    overwrite: Overwrite = False,
    debug: Debug = False,
):
    """Keep the pieces that the languages of some text need, and every character that they are written with."""
    with one_sentence_errors(debug):
        if plot is not None:
            check_plot(plot)
        report = trim_vocabulary(
            checkpoint,
            output,
            corpus=corpus,
            min_count=min_count,
            size=size,
            coverage=coverage,
            pad_to_multiple_of=pad_to_multiple_of,
            evaluate=evaluate,
            revision=revision,
            overwrite=overwrite,
            dry_run=dry_run,
        )
    show(report, output, plot, dry_run, debug)


def show(report: VocabularyReport, output: Path, plot: Path | None, dry_run: bool, debug: bool):
    with one_sentence_errors(debug, state_of(output, dry_run)):
        console = Console(highlight=False)
        report.print(console)
        if plot is not None:
            report.plot(plot)
            console.print(f"Drawn to {plot}.")
        console.print("Nothing was written (--dry-run)." if dry_run else f"Written to {output}.")
