"""The command `xlm-swcm evaluate`: parse options, call the library, print the report."""

from pathlib import Path
from typing import Annotated

import typer

from modeling_xlm_swcm import evaluation
from modeling_xlm_swcm.checkpoints.errors import ConversionError
from modeling_xlm_swcm.checkpoints.plots import check_plot_path
from modeling_xlm_swcm.command import LIST_ADVICE, make_console, report_errors, split_codes
from modeling_xlm_swcm.hub.card import read_metrics
from modeling_xlm_swcm.hub_xlm_swcm import REPORT


Models = Annotated[
    list[str],
    typer.Argument(
        metavar="MODEL...", help="XLM-SWCM models or other sequence-to-sequence models: Hub ids or folders."
    ),
]
Data = Annotated[
    str,
    typer.Option(
        metavar="DATA",
        help="File with one column per language, Hub id of a dataset, name of a benchmark (`flores+`, `ntrex`, "
        "`milic-eval`, `cmhg`), or folder with the files of a benchmark.",
    ),
]
Target = Annotated[list[str], typer.Option(metavar="CODE...", help=f"Language codes of the references. {LIST_ADVICE}")]
Source = Annotated[
    str | None,
    typer.Option(
        metavar="CODE",
        help="Language code of the sources. Default: none. Leave it out for models that write titles. The data then "
        "has columns of texts and titles.",
    ),
]
Subset = Annotated[
    str | None,
    typer.Option(help="Subset of a benchmark, or configuration of a Hub dataset. Default: the main subset."),
]
Codes = Annotated[
    list[str] | None,
    typer.Option(
        metavar="CODE=NAME...",
        help="Names of languages in the data or in a tokenizer, for example zh=zho_Hans. Default: the name with the "
        f"same language and script. {LIST_ADVICE}",
    ),
]
Output = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER", help="Folder for results.json, outputs.jsonl, samples.md and scores.png. Default: no files."
    ),
]
Record = Annotated[
    bool,
    typer.Option("--record", help="Write chrF++, BLEU and ROUGE-L into metrics.json of local XLM-SWCM models."),
]
Beams = Annotated[int, typer.Option(metavar="N", help="Number of beams. 1 is greedy decoding.")]
MaxLength = Annotated[int, typer.Option(metavar="N", help="Maximum length of an output in tokens.")]
BatchTokens = Annotated[
    int, typer.Option(metavar="N", help="Maximum size of a batch in tokens, with padding and for all beams.")
]
MaxSamples = Annotated[
    int | None,
    typer.Option(metavar="N", help="Maximum number of texts per direction. Default: all texts."),
]
SkipBadRows = Annotated[bool, typer.Option("--skip-bad-rows", help="Skip bad rows, with a warning.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def evaluate_command(
    models: Models,
    data: Data,
    target: Target,
    source: Source = None,
    subset: Subset = None,
    codes: Codes = None,
    output: Output = None,
    record: Record = False,
    num_beams: Beams = 4,
    max_length: MaxLength = 256,
    batch_tokens: BatchTokens = 4096,
    max_samples: MaxSamples = None,
    skip_bad_rows: SkipBadRows = False,
    debug: Debug = False,
):
    """Score models on a test set, compare them, and count faults of their outputs."""
    with report_errors(debug):
        if output is not None:
            check_plot_path(output / "scores.png", "--output")
        if record:
            check_record(models, max_samples)
        report = evaluation.evaluate(
            models,
            data,
            split_codes(target),
            source,
            subset=subset,
            codes=split_codes(codes or []),
            max_samples=max_samples,
            num_beams=num_beams,
            max_length=max_length,
            batch_tokens=batch_tokens,
            skip_bad_rows=skip_bad_rows,
        )
        console = make_console()
        report.print(console)
        if output is not None:
            report.write(output)
            console.print(f"Written to {output}: results.json, outputs.jsonl, samples.md and scores.png.")
        if record:
            console.print(f"Recorded in {', '.join(map(str, report.record()))}.")


def check_record(models: list[str], max_samples: int | None):
    """Refuse `--record` for some texts only, without a local model, or if a metrics.json is damaged."""
    if max_samples is not None:
        raise ConversionError(
            "--record needs the scores of all texts, but --max-samples leaves texts out. Remove one of these options."
        )
    folders = [Path(model) for model in models if Path(model, REPORT).is_file()]
    if not folders:
        raise ConversionError(f"--record needs a local folder with {REPORT}. Pass such a model, or remove --record.")
    for folder in folders:
        read_metrics(folder)
