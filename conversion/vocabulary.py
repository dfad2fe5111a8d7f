"""A checkpoint with other pieces in its vocabulary: new ones for a script that it cannot read, or fewer.

Encoders and XLM-SWCM checkpoints alike: the word embedding and every tensor that is tied to it or has a row per
word change together, all others are kept bit by bit.
"""

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import torch
import transformers
from transformers import AutoTokenizer, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

import modeling_xlm_swcm

from .checkpoint import (
    ConversionError,
    StoredTensor,
    as_bytes,
    blocks,
    check_output,
    equal,
    read_config,
    read_weights,
    return_freed_memory,
    whole_folder,
)
from .corpus import Corpus, compare
from .encoder import check_config, check_rows, load_tokenizer
from .inspection import CONFIG_CLASSES, read_conversion_report, read_optional
from .pieces import SPACE, Pieces, choose_pieces, count_pieces, indispensable, learn_pieces, new_ids_of, script
from .vocabulary_report import VocabularyReport


INITS = ("mean-of-pieces", "random")

# tensors with a row per word, in encoders with any head and in XLM-SWCM
VOCABULARY_TENSORS = re.compile(r"(.+\.)?(word_embeddings\.weight|lm_head\.(weight|bias|decoder\.(weight|bias)))")
# fields of config.json and generation_config.json that hold ids
NAMES_IDS = re.compile(r".+_token_ids?|(begin_)?suppress_tokens|(bad|force)_words_ids")
# those that hold them among other numbers
MIXES_IDS = ("sequence_bias", "forced_decoder_ids")
MAX_PIECES, MAX_MULTIPLE = 10_000_000, 65_536
# rows without a token are never to be written: e**-100 is no probability
PADDING_BIAS = -100.0


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


def extend(
    checkpoint: str | PathLike,
    output: str | PathLike,
    *,
    corpus: list[str],
    size: int,
    init: str = "mean-of-pieces",
    evaluate: list[str] = (),
    revision: str | None = None,
    seed: int = 0,
    overwrite: bool = False,
    dry_run: bool = False,
) -> VocabularyReport:
    """
    Add pieces that are learnt from text. Old ids stay, and text in other scripts is cut as before.

    Args:
        checkpoint: Hub id or folder of an encoder or XLM-SWCM model with a Unigram tokenizer.
        output: the folder to write, whole or not at all.
        corpus: UTF-8 text files, each `language=path` or named by its language up to the first dot.
        size: of the Unigram vocabulary that is learnt; the pieces of it that the checkpoint lacks are added.
        init: of the new rows. "mean-of-pieces": the mean of the rows of the pieces that the new one was cut into,
            where `<unk>` counts as the mean of its script's rows, or of all, and then with noise. "random": random
            embeddings, at the mean bias.
        evaluate: text to measure with instead of the corpus.
        seed: of the sample to learn from, and of noise and random rows.

    Raises:
        ConversionError: checkpoint, corpus, size or output are not as they should be.
    """
    if init not in INITS:
        raise ConversionError(f"init must be one of {', '.join(INITS)}; got {init}.")
    if not 1 <= size <= MAX_PIECES:
        raise ConversionError(f"--size must be from 1 to {MAX_PIECES:,}; got {size}.")
    source, corpora, measured = prepare(checkpoint, output, corpus, evaluate, revision, overwrite)
    pieces = Pieces(source.name, source.tokenizer)
    new = learn_pieces(pieces, corpora, size, seed)
    if not new:
        raise ConversionError(f"{source.name} has every piece that was learnt; give a larger --size, or other text.")
    old_ids = [*range(len(pieces.vocab)), *[-1] * len(new)]
    tokenizer = pieces.with_vocab(pieces.vocab + new, old_ids)
    report = VocabularyReport("extend", source.name, revision, {"size": size, "init": init, "seed": seed})
    report.languages = compare(pieces.backend, tokenizer.backend_tokenizer, old_ids, pieces.unknown, measured)

    first, last = len(pieces.vocab), len(pieces.vocab) + len(new)
    old_ids += range(last, source.rows)  # of rows that no token has; the new tokens take the first of them
    origins = find_origins(pieces, [piece for piece, _ in new]) if init == "mean-of-pieces" else None
    std = source.config.get("initializer_range", 0.02)

    def change(tensor: torch.Tensor | StoredTensor) -> torch.Tensor:
        changed = select_rows(tensor, old_ids)
        noise = std * torch.randn(len(new), *changed.shape[1:], generator=torch.Generator().manual_seed(seed))
        if changed.ndim == 1:
            noise.zero_()
        mean = mean_row(changed[:first], pieces.added)
        if origins is not None:
            rows = mean_of_pieces(changed[:first], origins, mean, noise)
        else:
            rows = noise if changed.ndim > 1 else mean.expand(len(new))
        changed[first:last] = rows
        return changed

    return write(source, Path(output), tokenizer, old_ids, change, report, overwrite, dry_run)


def trim(
    checkpoint: str | PathLike,
    output: str | PathLike,
    *,
    corpus: list[str],
    min_count: int | None = None,
    size: int | None = None,
    coverage: float | None = None,
    pad_to_multiple_of: int = 1,
    evaluate: list[str] = (),
    revision: str | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
) -> VocabularyReport:
    """
    Keep the pieces that some languages need. `id_map.json` in the output has the new id of every old one that is kept.

    Special tokens, tags, and every character that the languages are written with stay in any case, so that their text
    can still be written, in more pieces where a rare one is gone.

    Args:
        checkpoint: Hub id or folder of an encoder or XLM-SWCM model with a Unigram tokenizer.
        output: the folder to write, whole or not at all.
        corpus: UTF-8 text files, each `language=path` or named by its language up to the first dot.
        min_count: keep pieces that occur so often.
        size: keep so many pieces, by their mean share in the languages.
        coverage: keep the most frequent pieces that make up this share of the tokens of each language. The default,
            with 0.9999, where none of the three is given.
        pad_to_multiple_of: add rows that no token has, so that their number is a multiple.
        evaluate: text to measure with instead of the corpus.

    Raises:
        ConversionError: checkpoint, corpus, size or output are not as they should be.
    """
    if sum(option is not None for option in (min_count, size, coverage)) > 1:
        raise ConversionError("Give only one of --min-count, --size and --coverage.")
    coverage = 0.9999 if min_count is size is coverage is None else coverage
    if coverage is not None and not 0 < coverage <= 1:
        raise ConversionError(f"--coverage must be above 0 and at most 1; got {coverage}.")
    if min_count is not None and min_count < 1:
        raise ConversionError(f"--min-count must be at least 1; got {min_count}.")
    if not 1 <= pad_to_multiple_of <= MAX_MULTIPLE:
        raise ConversionError(f"--pad-to-multiple-of must be from 1 to {MAX_MULTIPLE}; got {pad_to_multiple_of}.")
    source, corpora, measured = prepare(checkpoint, output, corpus, evaluate, revision, overwrite)
    if pad_to_multiple_of > 1 and not any(name.endswith("bias") for name in source.tensors if is_vocabulary(name)):
        raise ConversionError(
            f"{source.name} has no output bias, which keeps rows without a token from being written: leave out "
            "--pad-to-multiple-of, or give it after the conversion."
        )
    if named := [name for name in MIXES_IDS if (source.generation_config or {}).get(name)]:
        raise ConversionError(
            f"generation_config.json of {source.name} sets {named[0]}, whose ids would name other pieces; take it out."
        )
    pieces = Pieces(source.name, source.tokenizer)
    counts = count_pieces(pieces, corpora)
    kept = indispensable(pieces, counts)
    kept[[*named_ids(source.config), *named_ids(source.generation_config or {})]] = True
    old_ids = choose_pieces(pieces, counts, kept, min_count, size, coverage).tolist()
    tokenizer = pieces.with_vocab([pieces.vocab[old] for old in old_ids], old_ids)
    options = {"min_count": min_count, "size": size, "coverage": coverage, "pad_to_multiple_of": pad_to_multiple_of}
    report = VocabularyReport("trim", source.name, revision, options)
    report.languages = compare(pieces.backend, tokenizer.backend_tokenizer, old_ids, pieces.unknown, measured)

    tokens = len(old_ids)
    old_ids += [-1] * (-tokens % pad_to_multiple_of)

    def change(tensor: torch.Tensor | StoredTensor) -> torch.Tensor:
        changed = select_rows(tensor, old_ids)
        changed[tokens:] = 0.0 if changed.ndim > 1 else PADDING_BIAS
        return changed

    return write(source, Path(output), tokenizer, old_ids, change, report, overwrite, dry_run)


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


def mean_row(tensor: torch.Tensor, added: Iterable[int]) -> torch.Tensor:
    """Mean over the pieces: special tokens and tags are no words, and may have been added since."""
    is_piece = torch.ones(len(tensor), dtype=torch.bool)
    is_piece[list(added)] = False
    return (sum(block[is_piece[rows]].double().sum(0) for rows, block in blocks(tensor)) / is_piece.sum()).float()


@dataclass
class Origins:
    """What new pieces were cut into.

    Attributes:
        pieces: for each the ids of old pieces, and the scripts (or None) of the parts that were `<unk>`.
        script_ids: the ids of the old pieces that are written in one of these scripts alone.
    """

    pieces: list[tuple[list[int], list[str | None]]]
    script_ids: dict[str, list[int]]


def find_origins(pieces: Pieces, new: list[str]) -> Origins:
    origins, model = [], pieces.backend.model
    for piece in new:
        known, unknown = [], []
        for token in model.tokenize(piece):
            if token.id == pieces.unknown:
                unknown += [next(filter(None, map(script, token.value)), None)]
            elif token.value != SPACE or piece == SPACE:
                known.append(token.id)
        origins.append((known, unknown))
    wanted = {of for _, unknown in origins for of in unknown} - {None}
    script_ids = defaultdict(list)
    for index, (piece, _) in enumerate(pieces.vocab):
        of = {script(character) for character in piece.removeprefix(SPACE)}
        if len(of) == 1 and of <= wanted and index not in pieces.added:
            script_ids[of.pop()].append(index)
    return Origins(origins, script_ids)


def mean_of_pieces(old: torch.Tensor, origins: Origins, mean: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """A row per new piece: the mean over its old pieces, with `noise` where a part of it was `<unk>`.

    Such a part counts as the mean of its script's rows, or as `mean` where the script has none.
    """
    of_script = {of: old[ids].float().mean(0) for of, ids in origins.script_ids.items()}
    rows = []
    for (known, unknown), own_noise in zip(origins.pieces, noise, strict=True):
        parts = [*old[known].float(), *(of_script.get(of, mean) for of in unknown)]
        row = torch.stack(parts).mean(0) if parts else mean
        rows.append(row if parts and not unknown else row + own_noise)
    return torch.stack(rows)


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
