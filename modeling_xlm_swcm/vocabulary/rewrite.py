"""Read a checkpoint and write it with another vocabulary.

The checkpoint is an encoder or an XLM-SWCM model. The word embeddings and all tensors with a row per token change
together. All other tensors are copied bit by bit.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoTokenizer, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES
from transformers.utils import logging

import modeling_xlm_swcm
from modeling_xlm_swcm.checkpoints.arguments import as_list, check_path
from modeling_xlm_swcm.checkpoints.encoder_tokenizers import check_rows, load_encoder_tokenizer
from modeling_xlm_swcm.checkpoints.encoders import check_config
from modeling_xlm_swcm.checkpoints.errors import ConversionError, make_config_error
from modeling_xlm_swcm.checkpoints.families import FAMILIES
from modeling_xlm_swcm.checkpoints.inspection import CONFIG_CLASSES, read_conversion_report, read_optional
from modeling_xlm_swcm.checkpoints.languages import check_codes
from modeling_xlm_swcm.checkpoints.reading import (
    StoredTensor,
    as_bytes,
    blocks,
    check_dtypes,
    equal,
    read_config,
    read_weights,
    return_freed_memory,
)
from modeling_xlm_swcm.checkpoints.sentence_transformers import find_encoder_folder
from modeling_xlm_swcm.checkpoints.writing import check_output, whole_folder
from modeling_xlm_swcm.tokenization_xlm_swcm import language_tag

from .corpus import Corpus, compare_segmentations
from .kinds import Vocabulary, invert_ids
from .report import VocabularyReport


# Ends of the names of word embeddings, in encoders with any head and in XLM-SWCM models.
WORD_EMBEDDINGS = tuple({f".{family.word_embeddings}" for family in FAMILIES})

# Ends of the names of tensors with a row per token, in encoders with any head and in XLM-SWCM models.
VOCABULARY_TENSORS = tuple(
    f".{name}"
    for name in {
        *("lm_head.weight", "lm_head.bias"),
        *(name for family in FAMILIES for name in family.vocabulary_tensors),
    }
)

# Fields of config.json and generation_config.json that hold only token ids.
TOKEN_ID_FIELDS = re.compile(r".+_token_ids?|(begin_)?suppress_tokens|(bad|force)_words_ids")

# Fields that hold token ids and other numbers.
MIXED_ID_FIELDS = ("sequence_bias", "forced_decoder_ids")


@dataclass
class SourceCheckpoint:
    """An encoder or XLM-SWCM checkpoint as it is stored."""

    name: str
    config: dict
    generation_config: dict | None
    tensors: dict[str, torch.Tensor | StoredTensor]
    tokenizer: PreTrainedTokenizerBase
    model_class: type[PreTrainedModel]
    conversion_report: dict | None

    @property
    def rows(self) -> int:
        """Number of rows of the embedding matrix."""
        return self.config["vocab_size"]


def read_source(
    checkpoint: str | PathLike,
    output: str | PathLike,
    corpus: list[str],
    evaluate: list[str] | tuple[str, ...],
    revision: str | None,
    overwrite: bool,
) -> tuple[SourceCheckpoint, list[Corpus], list[Corpus]]:
    """Check the inputs. Return the checkpoint, the corpora and the corpora to measure on."""
    check_path("checkpoint", checkpoint)
    check_path("output", output)
    corpora, evaluation = parse_corpora(corpus, evaluate)
    check_output(Path(output), overwrite, checkpoint, *(text.path for text in corpora + evaluation))
    name = find_encoder_folder(str(checkpoint), revision)
    check_output(Path(output), overwrite, name)
    config = read_config(name, revision)
    if config.get("model_type") not in CONFIG_CLASSES:
        check_config(name, config)
    if config.get("quantization_config"):
        raise ConversionError(
            f"The vocabulary of {name} cannot be changed: its weights are quantised. Use the checkpoint before "
            "quantisation."
        )
    generation_config = read_optional(name, "generation_config.json", revision)
    tensors, tokenizer = read_weights(name, revision), load_encoder_tokenizer(name, revision)
    check_dtypes(name, tensors)
    check_vocabulary_tensors(name, config, tensors)
    check_rows(name, tokenizer, config["vocab_size"])
    if config.get("tie_word_embeddings", True):
        drop_tied_tensors(tensors)
    for token_id in find_token_ids(config) | find_token_ids(generation_config or {}):
        if not 0 <= token_id < len(tokenizer):
            raise ConversionError(
                f"config.json or generation_config.json of {name} has the token id {token_id}, but the tokenizer has "
                f"{len(tokenizer)} tokens. Correct the id."
            )
    conversion_report = read_conversion_report(name, revision)
    check_tag_ids(name, tokenizer, conversion_report)
    model_class = find_model_class(name, config)
    source = SourceCheckpoint(name, config, generation_config, tensors, tokenizer, model_class, conversion_report)
    return source, corpora, evaluation


def check_tag_ids(name: str, tokenizer: PreTrainedTokenizerBase, conversion_report: dict | None):
    """Refuse a conversion report whose tag ids differ from the ids of the tokenizer."""
    ids, vocab = (conversion_report or {}).get("language_ids", {}), tokenizer.get_vocab()
    if wrong := [code for code, token_id in ids.items() if vocab.get(language_tag(code)) != token_id]:
        raise ConversionError(
            f"conversion_report.json of {name} gives the tag of {wrong[0]} the id {ids[wrong[0]]}, but in the "
            f"tokenizer its id is {vocab.get(language_tag(wrong[0]))}. Copy the report from the folder that the "
            "tokenizer comes from."
        )


def parse_corpora(corpus: list[str], evaluate: list[str] | tuple[str, ...]) -> tuple[list[Corpus], list[Corpus]]:
    """Return the corpora and the corpora to measure on, which are the same by default."""
    corpus, evaluate = as_list("corpus", corpus), as_list("evaluate", evaluate)
    if not corpus:
        raise ConversionError("The corpus is empty. Pass text files as `corpus`.")
    corpora = Corpus.parse_all(corpus)
    evaluation = Corpus.parse_all(evaluate) or corpora
    check_codes(text.language for text in (*corpora, *evaluation))
    for texts in (corpora, evaluation):
        if repeated := [text.path for text in texts if sum(map(text.has_same_text, texts)) > 1]:
            raise ConversionError(f"{repeated[0]} is given twice. Pass each text file once.")
    return corpora, evaluation


def check_vocabulary_tensors(name: str, config: dict, tensors: dict[str, torch.Tensor | StoredTensor]):
    """Refuse a checkpoint without word embeddings, or with tensors that do not match its `vocab_size`."""
    vocabulary_tensors = find_vocabulary_tensors(tensors)
    if not vocabulary_tensors or not is_word_embeddings(vocabulary_tensors[0]):
        raise ConversionError(f"{name} has no word embeddings. Use an encoder or an XLM-SWCM checkpoint.")
    for tensor in vocabulary_tensors:
        rows, vocab_size = tensors[tensor].shape[0], config.get("vocab_size")
        if rows != vocab_size:
            raise ConversionError(
                f"{tensor} of {name} has {rows} rows, but vocab_size in config.json is {vocab_size}. Use a checkpoint "
                "whose weights match its config."
            )


def find_vocabulary_tensors(tensors: dict[str, torch.Tensor | StoredTensor]) -> list[str]:
    """Return the names of the tensors with a row per token, word embeddings first."""
    return sorted(filter(has_row_per_token, tensors), key=lambda tensor: not is_word_embeddings(tensor))


def drop_tied_tensors(tensors: dict[str, torch.Tensor | StoredTensor]):
    """Remove copies of other tensors, because Transformers ties them when it loads the model."""
    word_embeddings = find_vocabulary_tensors(tensors)[0]
    for head in (family.head for family in FAMILIES):
        for parameter, original in (("weight", word_embeddings), ("bias", head.bias)):
            copied = f"{head.projection}.{parameter}"
            if (
                copied != original
                and copied in tensors
                and original in tensors
                and equal(tensors[copied], tensors[original])
            ):
                del tensors[copied]


def find_model_class(name: str, config: dict) -> type[PreTrainedModel]:
    """Return the class that config.json names."""
    architectures = config.get("architectures")
    architecture = str(architectures[0]) if isinstance(architectures, list) and architectures else ""
    model_class: Any = getattr(modeling_xlm_swcm, architecture, None) or getattr(transformers, architecture, None)
    model_type = config["model_type"]
    if not hasattr(model_class, "_from_config") or model_class.config_class.model_type != model_type:
        example = MODEL_FOR_MASKED_LM_MAPPING_NAMES.get(model_type, "XLMSWCMForConditionalGeneration")
        raise ConversionError(
            f"architectures in config.json of {name} must name a Transformers class for {model_type} (got "
            f'{json.dumps(architectures)}). Set the class of the weights, for example "architectures": ["{example}"].'
        )
    return model_class


def is_word_embeddings(tensor: str) -> bool:
    """Return True if the tensor of this name holds the word embeddings."""
    return f".{tensor}".endswith(WORD_EMBEDDINGS)


def has_row_per_token(tensor: str) -> bool:
    """Return True if the tensor of this name has a row per token."""
    return f".{tensor}".endswith(VOCABULARY_TENSORS)


def find_token_ids(config: dict) -> set[int]:
    """Return the token ids in a config, for example `eos_token_id` and `suppress_tokens`."""

    def flatten(name: str, value) -> set[int]:
        if isinstance(value, list):
            return {token_id for item in value for token_id in flatten(name, item)}
        if not isinstance(value, int) or isinstance(value, bool):
            raise ConversionError(
                f"{name} in config.json or generation_config.json has the token id {value!r}. Use a whole number."
            )
        return {value}

    fields = [name for name, value in config.items() if TOKEN_ID_FIELDS.fullmatch(name) and value is not None]
    return {token_id for name in fields for token_id in flatten(name, config[name])}


def renumber_config(config: dict, old_ids: list[int]) -> dict:
    """Return the config with new token ids."""
    new_ids = invert_ids(old_ids)

    def renumber(value):
        return [renumber(old) for old in value] if isinstance(value, list) else new_ids[value]

    return {
        name: renumber(value) if TOKEN_ID_FIELDS.fullmatch(name) and value is not None else value
        for name, value in config.items()
    }


def renumber_conversion_report(conversion_report: dict, old_ids: list[int]) -> dict:
    """Return the conversion report with new token ids and without its parameter counts, which are outdated."""
    new_ids = invert_ids(old_ids)
    report = {name: value for name, value in conversion_report.items() if name != "parameters"}
    return report | {
        "language_ids": {code: new_ids[old] for code, old in report.get("language_ids", {}).items()},
        "new_ids": [new_ids[old] for old in report.get("new_ids", [])],
    }


def select_rows(tensor: torch.Tensor | StoredTensor, old_ids: list[int]) -> torch.Tensor:
    """Return the rows with these ids. The rows for an id of -1 are not initialised."""
    chosen = torch.tensor(old_ids)
    selected = torch.empty(len(old_ids), *tensor.shape[1:], dtype=tensor.dtype)
    for rows, block in blocks(tensor):
        in_block = (chosen >= rows.start) & (chosen < rows.stop)
        selected[in_block] = block[chosen[in_block] - rows.start]
    return selected


def build_tokenizer(
    vocabulary: Vocabulary,
    pieces: list[tuple[str, float]],
    old_ids: list[int],
    report: VocabularyReport,
    evaluation: list[Corpus],
) -> PreTrainedTokenizerBase:
    """Return the tokenizer with other pieces. The report gets the segmentation of the texts before and after."""
    tokenizer = vocabulary.build_tokenizer(pieces, old_ids)
    before, after = vocabulary.backend, tokenizer.backend_tokenizer
    report.languages = compare_segmentations(before, after, old_ids, vocabulary.unk_id, evaluation)
    return tokenizer


def write_checkpoint(
    source: SourceCheckpoint,
    output: Path,
    tokenizer: PreTrainedTokenizerBase,
    old_ids: list[int],
    change: Callable[[torch.Tensor | StoredTensor], torch.Tensor],
    report: VocabularyReport,
    overwrite: bool,
    dry_run: bool,
) -> VocabularyReport:
    """
    Write the checkpoint with changed vocabulary tensors, and compare the written tensors with the source.

    Args:
        source (`SourceCheckpoint`): The checkpoint to change.
        output (`Path`): The folder to write.
        tokenizer (`PreTrainedTokenizerBase`): The new tokenizer.
        old_ids (`list[int]`): For each new row, its old row, or -1 for a new row.
        change (`Callable`): Function that returns the new version of a vocabulary tensor.
        report (`VocabularyReport`): The report to complete and write.
        overwrite (`bool`): Replace `output` if it holds a model.
        dry_run (`bool`): Complete the report and write nothing.

    Returns:
        `VocabularyReport`: The completed report.
    """
    count_changes(report, source, tokenizer, old_ids)
    if dry_run:
        return report
    dtype = source.tensors[report.changed[0]].dtype
    with whole_folder(output, report.parameters["after"] * dtype.itemsize, overwrite) as folder:
        tokenizer.save_pretrained(folder)
        return_freed_memory()
        tensors = {
            name: change(tensor) if name in report.changed else tensor[:]
            for name, tensor in logging.tqdm(source.tensors.items(), desc="Copying", unit="tensor")
        }
        save_weights(source, old_ids, dtype, tensors, folder)
        del tensors
        if report.action == "trim":
            (folder / "id_map.json").write_text(json.dumps(invert_ids(old_ids)), encoding="utf-8")
        (folder / "vocabulary_report.json").write_text(report.to_json(), encoding="utf-8")
        if source.conversion_report is not None:
            renumbered = renumber_conversion_report(source.conversion_report, old_ids)
            content = json.dumps(renumbered, indent=2, ensure_ascii=False) + "\n"
            (folder / "conversion_report.json").write_text(content, encoding="utf-8")
        check_written_tensors(source, old_ids, folder)
        if AutoTokenizer.from_pretrained(folder).get_vocab() != tokenizer.get_vocab():
            raise RuntimeError(
                f"The saved tokenizer of {source.name} differs from the planned vocabulary. Report this bug."
            )
    return report


def count_changes(
    report: VocabularyReport, source: SourceCheckpoint, tokenizer: PreTrainedTokenizerBase, old_ids: list[int]
):
    """Fill the counts of the report."""
    report.tokens = {"before": len(source.tokenizer), "after": len(tokenizer)}
    report.rows = {"before": source.rows, "after": len(old_ids)}
    report.changed = [name for name in source.tensors if has_row_per_token(name)]
    report.kept = [name for name in source.tensors if name not in report.changed]
    before = sum(tensor.shape.numel() for tensor in source.tensors.values())
    columns = sum(source.tensors[name].shape[1:].numel() for name in report.changed)
    report.parameters = {"before": before, "after": before + columns * (len(old_ids) - source.rows)}


def save_weights(
    source: SourceCheckpoint, old_ids: list[int], dtype: torch.dtype, tensors: dict[str, torch.Tensor], folder: Path
):
    """Save tensors, configs and, for XLM-SWCM, the code with the `save_pretrained` of the model's class."""
    fields = renumber_config(source.config, old_ids) | {"vocab_size": len(old_ids)}
    config_class = source.model_class.config_class
    assert config_class is not None  # `find_model_class` read its model type
    try:
        with torch.device("meta"):
            model = source.model_class._from_config(config_class.from_dict(fields), dtype=dtype)
        if source.generation_config is not None:
            model.generation_config = GenerationConfig.from_dict(renumber_config(source.generation_config, old_ids))
    # A field of a wrong kind can raise any error of the class.
    except Exception as error:
        raise make_config_error(source.name, error) from error
    try:
        model.save_pretrained(folder, state_dict=tensors)
    # Saving checks the fields again, together with the implementation of attention.
    except (TypeError, ValueError, StrictDataclassError) as error:
        raise make_config_error(source.name, error) from error


def check_written_tensors(source: SourceCheckpoint, old_ids: list[int], folder: Path):
    """Compare the written tensors with the source bit by bit."""
    written = read_weights(str(folder))
    if different := source.tensors.keys() ^ written.keys():
        raise RuntimeError(
            f"The written checkpoint has other tensors than {source.name}: {', '.join(sorted(different))}. "
            "Report this bug."
        )
    chosen = torch.tensor(old_ids)
    for name, tensor in logging.tqdm(source.tensors.items(), desc="Comparing", unit="tensor"):
        for rows, block in blocks(tensor):
            if not has_row_per_token(name):
                copy, expected = written[name][rows], block
            else:
                in_block = ((chosen >= rows.start) & (chosen < rows.stop)).nonzero().flatten()
                if len(in_block) == 0:
                    continue
                first = int(in_block[0])
                copy = written[name][first : int(in_block[-1]) + 1][in_block - first]
                expected = block[chosen[in_block] - rows.start]
            if not torch.equal(as_bytes(copy), as_bytes(expected)):
                raise RuntimeError(f"The written tensor {name} differs from {source.name}. Report this bug.")
