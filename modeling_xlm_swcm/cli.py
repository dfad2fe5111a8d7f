"""The command line, `xlm-swcm`: parse options, call the library, print reports."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import typer
from huggingface_hub import SpaceCard
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from typer.models import OptionInfo

from modeling_xlm_swcm.app.command import try_command
from modeling_xlm_swcm.checkpoints.code import replace_code
from modeling_xlm_swcm.checkpoints.errors import ConversionError
from modeling_xlm_swcm.checkpoints.inspection import inspect, read_folder_config
from modeling_xlm_swcm.checkpoints.plots import check_plot_path
from modeling_xlm_swcm.command import (
    LIST_ADVICE,
    Command,
    Group,
    make_console,
    refuse,
    report_errors,
    seed_option,
    split_codes,
)
from modeling_xlm_swcm.conversion.from_encoder import convert
from modeling_xlm_swcm.conversion.options import UNSET, Decoder, DecoderInit, LayerMap, NormalLayers, WeightSharing
from modeling_xlm_swcm.conversion.released import convert_released
from modeling_xlm_swcm.evaluation.command import evaluate_command
from modeling_xlm_swcm.export.export import Quantization, export
from modeling_xlm_swcm.hub.push import check_destination, collect_files
from modeling_xlm_swcm.hub.space import check_space, collect_space, find_model, list_models
from modeling_xlm_swcm.hub.upload import upload
from modeling_xlm_swcm.serving.command import serve_command
from modeling_xlm_swcm.vocabulary.extend import Init, extend
from modeling_xlm_swcm.vocabulary.report import VocabularyReport
from modeling_xlm_swcm.vocabulary.trim import trim


Dtype = Literal["float32", "bfloat16", "float16"]


def license_option(place: str) -> OptionInfo:
    """Return the option for the licence of the encoder, which is in `place` by default."""
    return typer.Option(help=f"Licence of the encoder, for example apache-2.0. Default: the licence in {place}.")


def revision_option(argument: str) -> OptionInfo:
    """Return the option for the revision of a repository on the Hub."""
    return typer.Option(help=f"Branch, tag or commit of {argument} on the Hub. Default: the main branch.")


def languages_option(description: str) -> OptionInfo:
    """Return the option for language codes."""
    return typer.Option(metavar="CODE...", help=f"{description} {LIST_ADVICE} Default: none.")


def dry_run_option(description: str) -> OptionInfo:
    """Return the option for a dry run."""
    return typer.Option("--dry-run", help=description)


Output = Annotated[Path, typer.Argument(help="Folder to write.")]
ModelFolder = Annotated[Path, typer.Argument(help="Folder with model and tokenizer.")]
Checkpoint = Annotated[str, typer.Argument(help="Encoder or XLM-SWCM model: Hub id or folder.")]
License = Annotated[str | None, license_option("the encoder's model card")]
PushLicense = Annotated[str | None, license_option("conversion_report.json")]
Private = Annotated[bool, typer.Option("--private", help="Create a private Hub repository.")]
DryRun = Annotated[bool, dry_run_option("Check everything, but do not write or upload OUTPUT.")]
VocabDryRun = Annotated[bool, dry_run_option("Check everything, but do not write OUTPUT.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace OUTPUT if it holds a model.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
SourceRevision = Annotated[str | None, revision_option("SOURCE")]
CheckpointRevision = Annotated[str | None, revision_option("CHECKPOINT")]
TextFiles = Annotated[
    list[str],
    typer.Option(
        "--corpus",
        metavar="FILE...",
        help="Text files with one sentence or paragraph per line. A .jsonl, .json, .csv, .tsv or .parquet file needs "
        "a column `text` or a column with the language code as its name. Write the language code before the path "
        f"(bo=FILE) or in the file name (bo.news.txt). {LIST_ADVICE}",
    ),
]
EvalFiles = Annotated[
    list[str] | None,
    typer.Option("--eval", metavar="FILE...", help="Text to test the tokenizer on. Default: the corpus."),
]
Plot = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="PNG file to draw. It shows tokens per word and the share of <unk>, before and after. Default: no plot.",
    ),
]

Languages = Annotated[list[str] | None, languages_option("Codes of the languages that get a tag, for example bo zh.")]
DecoderOption = Annotated[
    Decoder | None,
    typer.Option(
        help="Kind of decoder. `prefix`: encoder layers that also read the source. `paper`: the paper's layers. "
        "Default: `prefix`, or `paper` with `--decoder-init silent` or an option of the paper's decoder."
    ),
]
NormalLayerInterval = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Paper's decoder only. Insert a normal layer after every N custom layers (X in the paper), but none "
        "after the last layer. Default: 3.",
    ),
]
LayerMapOption = Annotated[
    LayerMap,
    typer.Option(
        help="Paper's decoder only. Encoder layers that each custom layer copies. `same`: one layer. `interleaved`: "
        "two layers, so the decoder has half the number of custom layers."
    ),
]
DecoderInitOption = Annotated[
    DecoderInit | None,
    typer.Option(
        metavar="INIT",
        help="How to initialise the decoder. `silent`: copied weights, new sublayers start at zero. `shared`: copied "
        "weights in all sublayers. `random`: no copied weights. Default: `shared`. Default for the paper's decoder: "
        "`silent`. With `--weight-sharing tied`, `--layer-map interleaved` or `--normal-layers copy`, the default is "
        "always `shared`.",
    ),
]
NormalLayersOption = Annotated[
    NormalLayers | None,
    typer.Option(
        help="Paper's decoder only. Normal layers to insert. `random`: random weights. `copy`: a copy of the previous "
        "custom layer. `none`: no normal layers. Default: `random`."
    ),
]
WeightSharingOption = Annotated[
    WeightSharing,
    typer.Option(help="How the decoder uses the encoder's weights. `init`: separate copies. `tied`: same tensors."),
]
DtypeOption = Annotated[
    Dtype | None,
    typer.Option(
        metavar="DTYPE",
        help="Data type of the model: `float32`, `bfloat16` or `float16`. Default: the data type of SOURCE.",
    ),
]
PushToHub = Annotated[
    str | None, typer.Option(metavar="REPO", help="Upload OUTPUT to this Hub repository, as owner/name.")
]
Seed = Annotated[int, seed_option("new weights")]

main = typer.Typer(
    cls=Group,
    add_completion=False,
    no_args_is_help=True,
    help="Convert encoders such as XLM-R and BERT to encoder-decoder models.",
)
vocab = typer.Typer(
    cls=Group, no_args_is_help=True, help="Extend or trim the vocabulary of an encoder or XLM-SWCM model."
)
main.add_typer(vocab, name="vocab")


def describe_output(output: Path, dry_run: bool) -> str:
    """Return a sentence about the output, for the message after Ctrl-C."""
    return "Nothing was written." if dry_run else f"{output} is written."


@main.command("convert", cls=Command)
def convert_command(
    source: Annotated[str, typer.Argument(help="Encoder to convert: Hub id or folder.")],
    output: Output,
    revision: SourceRevision = None,
    languages: Languages = None,
    decoder: DecoderOption = None,
    normal_layer_interval: NormalLayerInterval = None,
    layer_map: LayerMapOption = "same",
    decoder_init: DecoderInitOption = None,
    normal_layers: NormalLayersOption = None,
    weight_sharing: WeightSharingOption = "init",
    dtype: DtypeOption = None,
    seed: Seed = 0,
    dry_run: DryRun = False,
    overwrite: Overwrite = False,
    push_to_hub: PushToHub = None,
    license: License = None,
    private: Private = False,
    debug: Debug = False,
):
    """Convert an encoder to an encoder-decoder model."""
    with report_errors(debug):
        if private and push_to_hub is None:
            raise ConversionError("`--private` needs `--push-to-hub REPO`.")
        if push_to_hub is not None:
            check_destination(push_to_hub, source, revision, license)
        report = convert(
            source,
            output,
            overwrite=overwrite,
            dry_run=dry_run,
            license=license,
            revision=revision,
            languages=split_codes(languages or []),
            decoder=decoder,
            normal_layer_interval=UNSET if normal_layer_interval is None else normal_layer_interval,
            layer_map=layer_map,
            decoder_init=decoder_init,
            normal_layers=normal_layers,
            weight_sharing=weight_sharing,
            dtype=dtype,
            seed=seed,
        )
    with report_errors(debug, describe_output(output, dry_run)):
        console = make_console()
        report.print(console)
        if not languages:
            console.print("No language has a tag. To add tags, pass --languages, for example --languages bo zh.")
        console.print(f"{output} was not written (--dry-run)." if dry_run else f"Written to {output}.")
        if push_to_hub is not None and not dry_run:
            files = list_files(console, output, push_to_hub, license)
            console.print(f"Pushed: {upload(files, push_to_hub, private)}", soft_wrap=True)


@main.command("convert-released", cls=Command)
def convert_released_command(
    path: Annotated[Path, typer.Argument(help="Weight file of the release.")],
    output: Output,
    encoder: Annotated[str, typer.Option(help="Encoder of the release, for config and tokenizer: Hub id or folder.")],
    languages: Annotated[
        list[str] | None, languages_option("Languages of the tags in the file, in the order of their ids.")
    ] = None,
    overwrite: Overwrite = False,
    debug: Debug = False,
):
    """Convert the weights that the paper's authors released."""
    with report_errors(debug):
        report = convert_released(path, encoder, output, languages=split_codes(languages or []), overwrite=overwrite)
        console = make_console()
        report.print(console)
        console.print(f"Written to {output}.")


def list_files(console: Console, folder: Path, repo_id: str, license: str | None) -> dict[str, Path | bytes]:
    """Check a model and print the files that a push sends. Return the files by name."""
    files = collect_files(folder, repo_id, license)
    print_files(console, files, f"{folder} → {repo_id}")
    return files


def print_files(console: Console, files: dict[str, Path | bytes], title: str):
    """Print the names and sizes of files."""
    table = Table("file", "size", title=title, title_justify="left", box=None)
    for name, content in files.items():
        table.add_row(name, decimal(len(content) if isinstance(content, bytes) else content.stat().st_size))
    console.print(table)


@main.command("push", cls=Command)
def push_command(
    folder: Annotated[
        Path, typer.Argument(help="Folder with model and tokenizer. With `--space` and without REPO: a Hub id.")
    ],
    repo_id: Annotated[
        str | None,
        typer.Argument(metavar="REPO", help="Hub repository, as owner/name. A missing repository is created."),
    ] = None,
    license: PushLicense = None,
    private: Private = False,
    revision: Annotated[
        str | None,
        typer.Option(help="Branch to push to. A missing branch is created. Default: the main branch."),
    ] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request.")] = False,
    commit_message: Annotated[str, typer.Option(help="First line of the commit message.")] = "Upload XLM-SWCM model",
    space: Annotated[
        str | None,
        typer.Option(
            metavar="SPACE",
            help="Space to create or replace, as owner/name. It shows the model. Without REPO, only the Space is "
            "pushed, and FOLDER is the Hub id of a model. Default: no Space.",
        ),
    ] = None,
    dry_run: Annotated[bool, dry_run_option("Check the model and list the files, but upload nothing.")] = False,
    debug: Debug = False,
):
    """Check a model and upload it to the Hub in one commit, with a model card."""
    if repo_id is None and space is None:
        refuse("REPO is missing. Write xlm-swcm push FOLDER REPO, then the options.")
    with report_errors(debug, "Push again. The next push skips files that are already on the Hub."):
        if space is not None and create_pr:
            raise ConversionError("--space cannot show a pull request. Leave out --create-pr or --space.")
        console = make_console()
        before = check_space(space) if space is not None and not dry_run else None
        if repo_id is not None:
            files = list_files(console, folder, repo_id, license)
            if not dry_run:
                console.print(f"Pushed: {upload(files, repo_id, private, revision, create_pr, commit_message)}")
        if space is not None:
            push_space(console, space, before, repo_id, folder, private, revision, commit_message, dry_run)
        if dry_run:
            console.print("Nothing was sent (--dry-run).")


def push_space(
    console: Console,
    space: str,
    before: SpaceCard | None,
    repo_id: str | None,
    folder: Path,
    private: bool,
    revision: str | None,
    commit_message: str,
    dry_run: bool,
):
    """Push a Space that shows the model in a repository. In a dry run, the model may not be on the Hub yet."""
    is_future = dry_run and repo_id is not None
    repo_id = repo_id or str(folder)
    commit, needs_token = (None, private) if is_future else find_model(repo_id, revision)
    files = collect_space(space, repo_id, revision, commit=commit, needs_token=needs_token, before=before)
    if others := [model for model in list_models(before) if model != repo_id]:
        console.print(f"The Space {space} shows {', '.join(others)} now. This push replaces the model by {repo_id}.")
    print_files(console, files, f"Space for {repo_id} → {space}")
    if not dry_run:
        console.print(f"Pushed: {upload(files, space, private, None, False, commit_message, 'space')}")
        if needs_token:
            console.print(
                f"{repo_id} is private or gated. Add a secret HF_TOKEN in the settings of the Space {space}."
            )


@main.command("inspect", cls=Command)
def inspect_command(
    source: Annotated[str, typer.Argument(help="XLM-SWCM model: Hub id or folder.")],
    revision: SourceRevision = None,
    debug: Debug = False,
):
    """Show layers, parameters and origin of a model without downloading its weights."""
    with report_errors(debug):
        inspect(source, revision).print(make_console())


@main.command("refresh", cls=Command)
def refresh_command(folder: ModelFolder, debug: Debug = False):
    """Replace the saved code of a model with the code of the installed package."""
    with report_errors(debug, "Run xlm-swcm refresh again."):
        changed = replace_code(folder, read_folder_config(folder))
        console = make_console()
        console.print(f"Replaced in {folder}: {', '.join(changed)}." if changed else f"{folder} is up to date.")


main.command("evaluate", cls=Command)(evaluate_command)
main.command("serve", cls=Command)(serve_command)
main.command("try", cls=Command)(try_command)


@main.command("export", cls=Command)
def export_command(
    folder: ModelFolder,
    output: Output,
    quantize: Annotated[
        Quantization,
        typer.Option(help="Quantisation of the weights. `int8`: smaller and faster, but outputs can differ."),
    ] = "none",
    overwrite: Overwrite = False,
    debug: Debug = False,
):
    """Write an OpenVINO model, which runs on a CPU without PyTorch."""
    with report_errors(debug):
        files = export(folder, output, quantize=quantize, overwrite=overwrite)
        console = make_console()
        console.print(f"Written to {output}: {', '.join(f'{name} ({decimal(size)})' for name, size in files.items())}")


@vocab.command("extend", cls=Command)
def extend_command(
    checkpoint: Checkpoint,
    output: Output,
    corpus: TextFiles,
    size: Annotated[
        int,
        typer.Option(
            metavar="N",
            help="Maximum number of tokens to learn from the corpus. Known tokens are not added again.",
        ),
    ],
    init: Annotated[
        Init,
        typer.Option(
            help="How to initialise the embeddings of new tokens. `mean-of-pieces`: the mean of the embeddings of the "
            "old tokens that the new token is split into. `random`: random embeddings."
        ),
    ] = "mean-of-pieces",
    evaluate: EvalFiles = None,
    plot: Plot = None,
    seed: Annotated[int, seed_option("the text sample and new embeddings")] = 0,
    revision: CheckpointRevision = None,
    dry_run: VocabDryRun = False,
    overwrite: Overwrite = False,
    debug: Debug = False,
):
    """Add tokens that are learned from text, for scripts and words that the tokenizer splits badly."""
    change_vocabulary(
        extend,
        checkpoint,
        output,
        plot,
        debug,
        corpus=corpus,
        size=size,
        init=init,
        evaluate=evaluate or [],
        revision=revision,
        seed=seed,
        overwrite=overwrite,
        dry_run=dry_run,
    )


@vocab.command("trim", cls=Command)
def trim_command(
    checkpoint: Checkpoint,
    output: Output,
    corpus: TextFiles,
    min_count: Annotated[
        int | None,
        typer.Option(metavar="N", help="Keep tokens that occur at least N times in the corpus. Default: not used."),
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Maximum number of tokens to keep. A BPE tokenizer also keeps the tokens that merge into kept "
            "tokens. Default: not used.",
        ),
    ] = None,
    coverage: Annotated[
        float | None,
        typer.Option(
            help="Keep the tokens that make up this share of each language's text (above 0, at most 1). Default: "
            "0.9999. Cannot be combined with `--min-count` or `--size`."
        ),
    ] = None,
    pad_to_multiple_of: Annotated[
        int,
        typer.Option(
            metavar="N",
            help="Round the number of embeddings up to a multiple of N. The model does not generate the extra ids.",
        ),
    ] = 1,
    evaluate: EvalFiles = None,
    plot: Plot = None,
    revision: CheckpointRevision = None,
    dry_run: VocabDryRun = False,
    overwrite: Overwrite = False,
    debug: Debug = False,
):
    """Keep the tokens that the languages of a corpus need, and all characters of their scripts."""
    change_vocabulary(
        trim,
        checkpoint,
        output,
        plot,
        debug,
        corpus=corpus,
        min_count=min_count,
        size=size,
        coverage=coverage,
        pad_to_multiple_of=pad_to_multiple_of,
        evaluate=evaluate or [],
        revision=revision,
        overwrite=overwrite,
        dry_run=dry_run,
    )


def change_vocabulary(
    change: Callable[..., VocabularyReport],
    checkpoint: str,
    output: Path,
    plot: Path | None,
    debug: bool,
    dry_run: bool,
    **options,
):
    """Extend or trim a vocabulary, print the report and draw its plot."""
    with report_errors(debug):
        if plot is not None:
            check_plot_path(plot)
        report = change(checkpoint, output, dry_run=dry_run, **options)
    with report_errors(debug, describe_output(output, dry_run)):
        console = make_console()
        report.print(console)
        if plot is not None:
            report.plot(plot)
            console.print(f"Plot written to {plot}.")
        console.print(f"{output} was not written (--dry-run)." if dry_run else f"Written to {output}.")
