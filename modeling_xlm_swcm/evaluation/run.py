"""Evaluate models: read the texts, check the models, generate, score."""

import os
from collections.abc import Iterable, Sequence
from os import PathLike
from pathlib import Path

import torch

from modeling_xlm_swcm.checkpoints.arguments import as_list, check_number, check_path
from modeling_xlm_swcm.checkpoints.languages import check_spaces
from modeling_xlm_swcm.corpora.bad_rows import DataError
from modeling_xlm_swcm.training.arguments import MAX_BEAMS

from .languages import split_spellings
from .pairs import EvaluationData, read_data
from .report import Evaluation
from .scoring import score_direction
from .systems import Outputs, System, open_system


MAX_COUNT = 10**9


def evaluate(
    models: str | Sequence[str],
    data: str | PathLike,
    target: str | Sequence[str],
    source: str | None = None,
    *,
    subset: str | None = None,
    codes: Iterable[str] = (),
    max_samples: int | None = None,
    num_beams: int = 4,
    max_length: int = 256,
    batch_tokens: int = 4096,
    skip_bad_rows: bool = False,
) -> Evaluation:
    """
    Score models on the same texts. Texts, languages and models are checked before the first text is generated.

    Args:
        models (`str` or `Sequence[str]`):
            Folders or Hub ids of XLM-SWCM models or other sequence-to-sequence models. The other models are compared
            with the first one.
        data (`str` or `PathLike`):
            File with one column for each language, Hub id of a dataset, name of a benchmark (`flores+`, `ntrex`,
            `milic-eval` or `cmhg`), or folder with the files of a benchmark.
        target (`str` or `Sequence[str]`):
            Language codes of the references.
        source (`str`, *optional*):
            Language code of the sources. Without a source, the models write titles of texts in the target language.
        subset (`str`, *optional*):
            Subset of a benchmark, or configuration of a Hub dataset.
        codes (`Iterable[str]`, *optional*):
            Names of languages in the data and in tokenizers, for example `kk-Arab=kk`.
        max_samples (`int`, *optional*):
            Maximum number of texts of each direction.
        num_beams (`int`, *optional*, defaults to 4):
            Number of beams. 1 is greedy decoding.
        max_length (`int`, *optional*, defaults to 256):
            Maximum length of an output in tokens.
        batch_tokens (`int`, *optional*, defaults to 4096):
            Maximum size of a batch in tokens, with padding and for all beams.
        skip_bad_rows (`bool`, *optional*, defaults to `False`):
            Skip bad rows, with a warning.

    Returns:
        [`Evaluation`]: the results.

    Raises:
        ConversionError: if an argument, the data or a model cannot be used.
    """
    check_path("data", data)
    data = str(data)
    models, targets = as_list("models", models), list(dict.fromkeys(as_list("target", target)))
    settings = {"num_beams": num_beams, "max_length": max_length, "batch_tokens": batch_tokens}
    check_settings(settings | {"max_samples": 1 if max_samples is None else max_samples})
    spellings = split_spellings(as_list("codes", codes))
    check_spaces("`target`", targets)
    if unused := next((code for code in spellings if code not in [source, *targets]), None):
        raise DataError(
            f'`codes=["{unused}={spellings[unused][0]}"]` has no effect. {unused} is neither `source` nor `target`. '
            "Write CODE=NAME with your code first."
        )
    if source in targets:
        raise DataError(f"`target` contains the source language {source}. Remove it, or remove `source` for titles.")
    systems = open_systems(models, spellings)
    for system in systems.values():
        for code in [*targets, *([source] if source else [])]:
            system.find_language(code)
    found = read_data(
        data,
        targets,
        source,
        subset=subset,
        spellings=spellings,
        max_samples=max_samples,
        skip_bad_rows=skip_bad_rows,
    )
    check_names(spellings, found.names.union(*(system.languages for system in systems.values())))
    outputs = {name: generate(system, found, settings) for name, system in systems.items()}
    directions = {
        direction: score_direction(pairs, {name: outputs[name][direction] for name in outputs})
        for direction, pairs in found.pairs.items()
    }
    sources = {name: system.source for name, system in systems.items()}
    settings |= {} if max_samples is None else {"max_samples": max_samples}
    return Evaluation(found.name, found.task, sources, directions, settings, found.skipped)


def check_settings(settings: dict[str, int]):
    """Refuse numbers that are out of range."""
    for name, value in settings.items():
        check_number(name, value)
        most = MAX_BEAMS if name == "num_beams" else MAX_COUNT
        if not 1 <= value <= most:
            raise DataError(f"`{name}` must be between 1 and {most} (got {value}). Use another number.")


def check_names(spellings: dict[str, list[str]], names: set[str]):
    """Refuse names in `codes` that neither the data nor a model has."""
    for code, given in spellings.items():
        if missing := [name for name in given if name not in names]:
            raise DataError(
                f'`codes=["{code}={missing[0]}"]` has no effect. Neither the data nor a model has the name '
                f"{missing[0]}. Correct the name, or remove it."
            )


def open_systems(models: list[str], spellings: dict[str, list[str]]) -> dict[str, System]:
    """Read configs and tokenizers. Return the models by their names in the report."""
    if not models:
        raise DataError("There is no model. Pass at least one folder or Hub id.")
    places = [os.path.realpath(model) for model in models]
    for place in places:
        same = [model for model, other in zip(models, places, strict=True) if other == place]
        if len(same) > 1:
            raise DataError(f"The models {' and '.join(same)} are the same model. Remove all but one.")
    return {name: open_system(model, spellings) for name, model in zip(name_models(models), models, strict=True)}


def name_models(models: list[str]) -> list[str]:
    """Return the shortest ends of different paths that differ, for example `a/final` and `b/final`."""
    parts = [Path(os.path.abspath(model) if os.path.isdir(model) else model).parts for model in models]
    names = []
    for own in parts:
        lengths = range(1, max(map(len, parts)) + 1)
        length = next(length for length in lengths if [each[-length:] for each in parts].count(own[-length:]) == 1)
        names.append(str(Path(*own[-length:])))
    return names


def generate(system: System, data: EvaluationData, settings: dict[str, int]) -> dict[str, Outputs]:
    """Load a model and generate the outputs of each direction. The model leaves memory afterwards."""
    model = system.load().to("cuda" if torch.cuda.is_available() else "cpu")
    outputs = {}
    for direction, pairs in data.pairs.items():
        texts = [str(pair.source) for pair in pairs]
        outputs[direction] = system.generate(model, texts, pairs[0].src_lang, pairs[0].tgt_lang, **settings)
    return outputs
