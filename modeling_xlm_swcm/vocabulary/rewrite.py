"""A checkpoint with other pieces in its vocabulary: new ones for a script that it cannot read, or fewer.

Encoders and XLM-SWCM checkpoints alike: the word embedding and every tensor that is tied to it or has a row per
word change together, all others are kept bit by bit.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import torch
import transformers
from transformers import AutoTokenizer, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

import modeling_xlm_swcm
from modeling_xlm_swcm.checkpoints.encoders import check_config, check_rows, load_tokenizer
from modeling_xlm_swcm.checkpoints.errors import ConversionError
from modeling_xlm_swcm.checkpoints.inspection import CONFIG_CLASSES, read_conversion_report, read_optional
from modeling_xlm_swcm.checkpoints.reading import (
    StoredTensor,
    as_bytes,
    blocks,
    equal,
    read_config,
    read_weights,
    return_freed_memory,
)
from modeling_xlm_swcm.checkpoints.writing import check_output, whole_folder

from .corpus import Corpus
from .pieces import new_ids_of
from .report import VocabularyReport


# tensors with a row per word, in encoders with any head and in XLM-SWCM
VOCABULARY_TENSORS = re.compile(r"(.+\.)?(word_embeddings\.weight|lm_head\.(weight|bias|decoder\.(weight|bias)))")

# fields of config.json and generation_config.json that hold ids
NAMES_IDS = re.compile(r".+_token_ids?|(begin_)?suppress_tokens|(bad|force)_words_ids")

# those that hold them among other numbers
MIXES_IDS = ("sequence_bias", "forced_decoder_ids")


@dataclass
class Checkpoint:
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
        return self.config["vocab_size"]


def prepare(
    checkpoint: str | PathLike,
    output: str | PathLike,
    corpus: list[str],
    evaluate: list[str],
    revision: str | None,
    overwrite: bool,
) -> tuple[Checkpoint, list[Corpus], list[Corpus]]:
    """The checkpoint, the text to count or learn from, and the text to measure with."""
    name = str(checkpoint)
    if not corpus:
        raise ConversionError("Give text files with --corpus.")
    corpora = [Corpus.named(file) for file in corpus]
    measured = [Corpus.named(file) for file in evaluate] or corpora
    for texts in (corpora, measured):
        if twice := [text.path for text in texts if sum(text.path.samefile(other.path) for other in texts) > 1]:
            raise ConversionError(f"{twice[0]} is given twice.")
    check_output(Path(output), overwrite, name, *(text.path for text in corpora + measured))
    config = read_config(name, revision)
    if config.get("model_type") not in CONFIG_CLASSES:
        check_config(name, config)
    generation_config = read_optional(name, "generation_config.json", revision)
    tensors, tokenizer = read_weights(name, revision), load_tokenizer(name, revision)
    vocabulary = sorted(filter(is_vocabulary, tensors), key=lambda tensor: "word_embeddings" not in tensor)
    if not vocabulary or "word_embeddings" not in vocabulary[0]:
        raise ConversionError(f"{name} has no tensor named word_embeddings.weight, so it has no vocabulary to change.")
    for tensor in vocabulary:
        rows = tensors[tensor].shape[0]
        if rows != config.get("vocab_size"):
            raise ConversionError(
                f"{tensor} of {name} has {rows} rows; the vocab_size in its config.json is {config.get('vocab_size')}."
            )
    check_rows(name, tokenizer, config["vocab_size"])
    for repeat, of in (("lm_head.decoder.weight", vocabulary[0]), ("lm_head.decoder.bias", "lm_head.bias")):
        if repeat in tensors and of in tensors and equal(tensors[repeat], tensors[of]):
            del tensors[repeat]  # Transformers ties it to the other
    for number in named_ids(config) | named_ids(generation_config or {}):
        if not 0 <= number < len(tokenizer):
            raise ConversionError(
                f"config.json or generation_config.json of {name} names the id {number}, and the tokenizer has "
                f"{len(tokenizer)} tokens."
            )
    conversion_report = read_conversion_report(name, revision)
    model_class = find_model_class(name, config)
    source = Checkpoint(name, config, generation_config, tensors, tokenizer, model_class, conversion_report)
    return source, corpora, measured


def find_model_class(name: str, config: dict) -> type[PreTrainedModel]:
    architecture = (config.get("architectures") or ["None"])[0]
    model_class = getattr(modeling_xlm_swcm, architecture, None) or getattr(transformers, architecture, None)
    kind = config["model_type"]
    if not hasattr(model_class, "_from_config") or model_class.config_class.model_type != kind:
        raise ConversionError(
            f"config.json of {name} names the architecture {architecture}, which is none of Transformers' for {kind}: "
            'write the class that the weights are of, such as "architectures": ["XLMRobertaForMaskedLM"].'
        )
    return model_class


def is_vocabulary(tensor: str) -> bool:
    return VOCABULARY_TENSORS.fullmatch(tensor) is not None


def named_ids(config: dict) -> set[int]:
    """Ids that a config names: `eos_token_id`, `forced_bos_token_id`, `suppress_tokens` ..."""

    def numbers(value) -> set[int]:
        return set().union(*map(numbers, value)) if isinstance(value, list) else {value}

    return numbers([value for name, value in config.items() if NAMES_IDS.fullmatch(name) and value is not None])


def with_new_ids(config: dict, old_ids: list[int]) -> dict:
    new_ids = new_ids_of(old_ids)

    def renamed(value):
        return [renamed(old) for old in value] if isinstance(value, list) else new_ids[value]

    return {
        name: renamed(value) if NAMES_IDS.fullmatch(name) and value is not None else value
        for name, value in config.items()
    }


def select_rows(tensor: torch.Tensor | StoredTensor, old_ids: list[int]) -> torch.Tensor:
    """The rows with these ids; those of id -1 are empty."""
    chosen = torch.tensor(old_ids)
    selected = torch.empty(len(old_ids), *tensor.shape[1:], dtype=tensor.dtype)
    for rows, block in blocks(tensor):
        of_block = (chosen >= rows.start) & (chosen < rows.stop)
        selected[of_block] = block[chosen[of_block] - rows.start]
    return selected


def write(
    source: Checkpoint,
    output: Path,
    tokenizer: PreTrainedTokenizerBase,
    old_ids: list[int],
    change: Callable[[torch.Tensor | StoredTensor], torch.Tensor],
    report: VocabularyReport,
    overwrite: bool,
    dry_run: bool,
) -> VocabularyReport:
    """Write the checkpoint with changed vocabulary tensors, and compare what was written with the source."""
    report.tokens = {"before": len(source.tokenizer), "after": len(tokenizer)}
    report.rows = {"before": source.rows, "after": len(old_ids)}
    report.changed = [name for name in source.tensors if is_vocabulary(name)]
    report.kept = [name for name in source.tensors if name not in report.changed]
    before = sum(tensor.shape.numel() for tensor in source.tensors.values())
    columns = sum(source.tensors[name].shape[1:].numel() for name in report.changed)
    report.parameters = {"before": before, "after": before + columns * (len(old_ids) - source.rows)}
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
        save_model(source, old_ids, dtype, tensors, folder)
        del tensors
        if report.action == "trim":
            (folder / "id_map.json").write_text(json.dumps(new_ids_of(old_ids)), encoding="utf-8")
        (folder / "vocabulary_report.json").write_text(report.to_json(), encoding="utf-8")
        if source.conversion_report is not None:
            content = json.dumps(brought_up_to_date(source.conversion_report, old_ids), indent=2, ensure_ascii=False)
            (folder / "conversion_report.json").write_text(content + "\n", encoding="utf-8")
        prove(source, old_ids, folder)
        if AutoTokenizer.from_pretrained(folder).get_vocab() != tokenizer.get_vocab():
            raise RuntimeError(f"The tokenizer of {source.name} does not come back as it was saved.")
    return report


def brought_up_to_date(conversion_report: dict, old_ids: list[int]) -> dict:
    """The report of the conversion with the ids of now, and without its count of parameters."""
    new_ids = new_ids_of(old_ids)
    report = {name: value for name, value in conversion_report.items() if name != "parameters"}
    return report | {
        "language_ids": {code: new_ids[old] for code, old in report.get("language_ids", {}).items()},
        "new_ids": [new_ids[old] for old in report.get("new_ids", [])],
    }


def save_model(
    source: Checkpoint, old_ids: list[int], dtype: torch.dtype, tensors: dict[str, torch.Tensor], folder: Path
):
    """As the model's own class saves it, with config, generation config and, for XLM-SWCM, the code that travels."""
    fields = with_new_ids(source.config, old_ids) | {"vocab_size": len(old_ids)}
    with torch.device("meta"):
        model = source.model_class._from_config(source.model_class.config_class.from_dict(fields), dtype=dtype)
    if source.generation_config is not None:
        model.generation_config = GenerationConfig.from_dict(with_new_ids(source.generation_config, old_ids))
    model.save_pretrained(folder, state_dict=tensors)


def prove(source: Checkpoint, old_ids: list[int], folder: Path):
    """Compare what was written with the source bit by bit."""
    written = read_weights(str(folder))
    if lost := source.tensors.keys() ^ written.keys():
        raise RuntimeError(f"Tensors of {source.name} were lost or made up: {sorted(lost)}")
    chosen = torch.tensor(old_ids)
    for name, tensor in logging.tqdm(source.tensors.items(), desc="Comparing", unit="tensor"):
        for rows, block in blocks(tensor):
            if not is_vocabulary(name):
                copy, expected = written[name][rows], block
            else:
                of_block = ((chosen >= rows.start) & (chosen < rows.stop)).nonzero().flatten()
                if len(of_block) == 0:
                    continue
                first = int(of_block[0])
                copy = written[name][first : int(of_block[-1]) + 1][of_block - first]
                expected = block[chosen[of_block] - rows.start]
            if not torch.equal(as_bytes(copy), as_bytes(expected)):
                raise RuntimeError(f"{name} was not kept bit by bit.")
