"""Generation for text files: one line of output for each line of input."""

import os
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from transformers import PreTrainedModel
from transformers.utils import logging

from modeling_xlm_swcm import XLMSWCMTokenizer
from modeling_xlm_swcm.checkpoints.errors import escape_unprintable
from modeling_xlm_swcm.checkpoints.inspection import read_model_config
from modeling_xlm_swcm.checkpoints.loading import load_model, load_tokenizer
from modeling_xlm_swcm.checkpoints.writing import whole_file
from modeling_xlm_swcm.corpora.files import check_regular, find_files, is_compressed, read_plain_text, split_lines
from modeling_xlm_swcm.corpora.rows import stream_texts
from modeling_xlm_swcm.scores_xlm_swcm import score_sequences
from modeling_xlm_swcm.sentences_xlm_swcm import Output, batches_by_length, join_outputs, split_texts
from modeling_xlm_swcm.terms_xlm_swcm import Terms, check_strength

from .arguments import check_beams, check_counts
from .coverage import Coverage
from .examples import batched
from .faults import find_cut
from .rows import AS_TEXT, BadRows, DataError, known_languages


logger = logging.get_logger(__name__)

STDIN, STDOUT, STDERR = range(3)


@dataclass
class GenerateArguments:
    """Options of generation for text files."""

    model_name_or_path: str = field(metadata={"help": "Model: a local folder or a Hub id."})
    source_lang: str = field(metadata={"help": "Language code of the input."})
    target_lang: str = field(metadata={"help": "Language code of the output."})
    input: str = field(
        default="-",
        metadata={
            "help": "File with one text per line. A .jsonl, .json, .csv, .tsv or .parquet file needs a column `text` "
            "or a column with the code of --source_lang as its name. `-` reads lines from stdin. Default: `-`."
        },
    )
    output: str = field(
        default="-",
        metadata={
            "help": "File to write. By default, it has one line per input line. `-` writes to stdout. Default: `-`."
        },
    )
    num_beams: int = field(default=4, metadata={"help": "Number of beams. 1 is greedy decoding."})
    num_return_sequences: int = field(
        default=1,
        metadata={
            "help": "Number of output lines per input line, best first. The second line joins the second best "
            "text of each sentence. At most --num_beams."
        },
    )
    scores: bool = field(
        default=False,
        metadata={
            "help": "Begin each output line with its score and a tab. The score is the mean log probability of the "
            "tokens of the line, 0 at best. If lines are split, a line without letters and digits has no score."
        },
    )
    terms: str | None = field(
        default=None,
        metadata={
            "help": "File with a source term, a tab and a target term in each line. If a sentence has a source term, "
            "its target term becomes more probable. It is not forced. A warning counts the missing terms."
        },
    )
    terms_strength: float | None = field(
        default=None,
        metadata={
            "help": "Number to add to the log probability of each token of a target term. A number from 1 to 4 helps "
            "where the model is unsure. Default: 2."
        },
    )
    max_length: int | None = field(
        default=None,
        metadata={
            "help": "Maximum output length in tokens for a sentence, or for a line that is not split. Default: the "
            "limit of the model."
        },
    )
    batch_tokens: int = field(
        default=4096, metadata={"help": "Maximum size of a batch in tokens, with padding and for all beams."}
    )
    split: bool | None = field(
        default=None,
        metadata={
            "help": "Split input lines into sentences and generate a text for each. false: a line is one input, and a "
            "long line is an error. Default: true if the languages differ."
        },
    )

    def __post_init__(self):
        check_counts(self, "max_length", "batch_tokens", "num_return_sequences")
        check_beams(self.num_beams)
        if self.terms_strength is not None:
            check_strength(self.terms_strength)
            if self.terms is None:
                raise ValueError("--terms_strength has no effect without --terms. Pass a file with --terms.")
        if self.num_return_sequences > self.num_beams:
            raise ValueError(
                f"--num_return_sequences must be at most --num_beams (got {self.num_return_sequences} with "
                f"{self.num_beams} beams). Use more beams."
            )


def generate_file(args: GenerateArguments):
    """
    Generate one line of output for each line of input. Lines keep their order, and empty lines stay empty.

    A line is translated sentence by sentence. Its tabs, list markers and table marks stay.

    The whole input is checked before the first line is generated.

    Args:
        args ([`GenerateArguments`]):
            Model, languages, files and limits. `max_length` is set to the limit of the model if it is larger.

    Raises:
        ValueError: if input or output cannot be used.
    """
    check_files(args)
    config = read_model_config(args.model_name_or_path)
    limit = config.longest_input
    args.max_length = limit if args.max_length is None else min(args.max_length, limit)
    tokenizer = load_tokenizer(args.model_name_or_path, config.vocab_size)
    check_languages(args, tokenizer)
    terms = None if args.terms is None else Terms(args.terms, tokenizer)
    texts = read_texts(args.input, args.source_lang)
    documents = make_documents(texts, tokenizer, args, limit)
    rows = encode_lines(documents, tokenizer, args.source_lang, limit, "stdin" if args.input == "-" else args.input)
    model = load_model(args.model_name_or_path, dtype="auto").eval()
    model = model.to("cuda" if torch.cuda.is_available() else "cpu")
    found = {(n, i): terms.find(documents[n - 1][i]) for n, i in rows} if terms is not None else {}
    generated = generate_lines(model, tokenizer, rows, args, terms, found)
    if terms is not None:
        warn_of_missing_terms(terms, found, generated)
    candidates = [
        join_lines(documents, [generated[key][number] for key in rows], args.scores)
        for number in range(args.num_return_sequences)
    ]
    write_lines([line for lines in zip(*candidates, strict=True) for line in lines], args.output)


def check_files(args: GenerateArguments):
    """
    Check that the output can be written and is no file that is read.

    Raises:
        ValueError: if the output cannot be written, if it is a file that is read, or if a standard stream is closed.
    """
    for option, path, stream in (("--input", args.input, "stdin"), ("--output", args.output, "stdout")):
        if path == "-" and getattr(sys, stream) is None:
            raise ValueError(f"{option} is not set, and {stream} is closed. Name a file with {option}.")
        if not path:
            raise ValueError(f"{option} is empty. Name a file.")
    if is_stream(args.output, STDOUT):
        # The file behind stdout may already have text.
        args.output = "-"
    if args.terms is not None:
        check_regular(args.terms, allow_stdin=True)
    if args.output != "-":
        sources = [] if args.input == "-" else find_files(args.input)
        check_output(args.output, sources if args.terms is None else [*sources, args.terms])


def check_output(output: str, sources: list[str]):
    """Check that an output file can be written and is no file that is read."""
    for name, number in (("stdin", STDIN), ("stderr", STDERR)):
        if os.path.isfile(output) and is_stream(output, number):
            raise ValueError(f"--output {output} is the file of {name}. Name another file.")
    if is_compressed(output):
        raise ValueError(f"--output {output} is plain text. Use a name with the ending .txt.")
    folder = Path(output).absolute().parent
    if not folder.is_dir():
        raise ValueError(f"The folder of --output {output} does not exist. Create it first.")
    if not os.access(folder, os.W_OK):
        raise ValueError(f"The folder of --output {output} is not writable. Choose another folder.")
    if Path(output).is_dir():
        raise ValueError(f"--output {output} is a folder. Name a file.")
    for source in sources:
        if Path(source).resolve() == Path(output).resolve():
            raise ValueError(f"--output {output} would overwrite {source}, which is read. Name another file.")


def is_stream(path: str, number: int) -> bool:
    """Return True if a path names the file, pipe or device behind a standard stream, for example `/dev/fd/1`."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(number))
    except OSError:
        return False


def read_texts(path: str, language: str) -> list[str]:
    """
    Read the texts of a file in a language, or the lines of stdin for "-".

    Raises:
        DataError: if there are no rows, or a row is not text.
    """
    name = "stdin" if path == "-" else path
    bad_rows = BadRows(can_skip=False, allow_empty=True)
    if path == "-":
        rows = read_plain_text(name, split_lines(sys.stdin.buffer), bad_rows)
    else:
        rows = stream_texts(path, language, bad_rows)
    texts = [text or "" for _, text in rows]
    bad_rows.report()
    if not texts:
        raise DataError(f"{name} is empty. Write one text per line.")
    return texts


def check_languages(args: GenerateArguments, tokenizer: XLMSWCMTokenizer):
    """
    Check that the model has a tag for both languages.

    Raises:
        DataError: if a tag is missing.
    """
    for option, code in {"--source_lang": args.source_lang, "--target_lang": args.target_lang}.items():
        if code not in tokenizer.languages:
            raise DataError(f'Unknown language "{code}" for {option}. {known_languages(tokenizer)}')


def make_documents(
    texts: list[str], tokenizer: XLMSWCMTokenizer, args: GenerateArguments, limit: int
) -> list[list[str]]:
    """Split each line into parts, as [`split_texts`] does, or into one part that the model reads."""

    def count_tokens(sentences: list[str]) -> list[int]:
        batches = batched(sentences)
        encoded = (tokenizer(list(batch), src_lang=args.source_lang, **AS_TEXT)["input_ids"] for batch in batches)
        return [len(ids) for rows in encoded for ids in rows]

    def warn(index: int, message: str):
        logger.warning(f"Text {index + 1}: {message}")

    is_split = args.source_lang != args.target_lang if args.split is None else args.split
    if is_split:
        return split_texts(texts, count_tokens, limit, warn)
    return [["", text.strip(), ""] if text.strip() else [""] for text in texts]


def encode_lines(
    documents: list[list[str]], tokenizer: XLMSWCMTokenizer, language: str, limit: int, path: str
) -> dict[tuple[int, int], list[int]]:
    """
    Encode the sentences of all lines, and log the share of unknown tokens.

    Returns:
        `dict[tuple[int, int], list[int]]`: token ids by the number of the line and the index of the sentence.

    Raises:
        DataError: if a sentence is longer than `limit` tokens.
    """
    rows, coverage = {}, Coverage(tokenizer)
    sentences = (
        ((number, index), parts[index])
        for number, parts in enumerate(documents, 1)
        for index in range(1, len(parts), 2)
    )
    for batch in batched(sentences):
        keys, texts = zip(*batch, strict=True)
        encoded = tokenizer(list(texts), src_lang=language, **AS_TEXT)["input_ids"]
        for key, text, ids in zip(keys, texts, encoded, strict=True):
            if len(ids) > limit:
                raise DataError(
                    f"Text {key[0]} of {path} has {len(ids)} tokens, but the model reads at most {limit}. Split the "
                    "text."
                )
            coverage.add(f"texts in {language}", text, ids[2:-1])
            rows[key] = ids
    coverage.log()
    return rows


@torch.inference_mode()
def generate_lines(
    model: PreTrainedModel,
    tokenizer: XLMSWCMTokenizer,
    rows: dict[tuple[int, int], list[int]],
    args: GenerateArguments,
    terms: Terms | None,
    found: dict[tuple[int, int], torch.Tensor],
) -> dict[tuple[int, int], list[Output]]:
    """Return `num_return_sequences` generated texts for each key of `rows`. `found` has the terms of each row."""
    options = {"forced_bos_token_id": tokenizer.get_lang_id(args.target_lang), "num_beams": args.num_beams}
    options |= {"num_return_sequences": args.num_return_sequences, "max_new_tokens": args.max_length}
    ends = model.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    generated, cut = {}, []
    batches = list(batches_by_length(rows, args.batch_tokens, args.num_beams, model.config.vocab_size))
    for batch in track(batches, "Generating", console=Console(stderr=True)):
        inputs = tokenizer.pad({"input_ids": [rows[key] for key in batch]}, return_tensors="pt").to(model.device)
        if terms is not None:
            processors = terms.processors(torch.cat([found[key] for key in batch]), args.terms_strength)
            options["logits_processor"] = processors
        ids = model.generate(**inputs, **options).unflatten(0, (len(batch), -1))  # (batch, sequences, target_len)
        scores, counts = torch.zeros(ids.shape[:2]), torch.zeros(ids.shape[:2], dtype=torch.long)
        if args.scores:
            end_ids = torch.tensor(ends, device=model.device)
            scores, counts = score_sequences(model, inputs, ids, end_ids, is_forced=True)
        for key, sequences, *numbers in zip(batch, ids.cpu().numpy(), scores.tolist(), counts.tolist(), strict=True):
            cut += [key] * any(find_cut(sequences, ends))
            texts = tokenizer.batch_decode(sequences, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            generated[key] = [Output(text.strip(), *pair) for text, *pair in zip(texts, *numbers, strict=True)]
    if cut:
        is_last = args.max_length >= model.config.longest_input
        advice = (
            "Split long sentences. If outputs repeat themselves, train the model longer."
            if is_last
            else "Pass a larger --max_length, or split long sentences."
        )
        numbers = {number for number, _ in cut}
        logger.warning(
            f"Texts with incomplete outputs: {len(numbers)} (first: text {min(numbers)}). The maximum is "
            f"{args.max_length} tokens. {advice}"
        )
    return generated


def warn_of_missing_terms(
    terms: Terms, found: dict[tuple[int, int], torch.Tensor], generated: dict[tuple[int, int], list[Output]]
):
    """Warn about target terms that the best text of a sentence lacks."""
    missing = [(key, term) for key in found for term in terms.list_missing(found[key][0], generated[key][0].text)]
    if missing:
        (number, _), term = missing[0][0], escape_unprintable(missing[0][1])
        total = sum(int(row.sum()) for row in found.values())
        logger.warning(
            f'{len(missing)} of {total} target terms are missing in the output (first: text {number}, "{term}"). Pass '
            "a larger --terms_strength, or correct these texts."
        )


def join_lines(documents: list[list[str]], outputs: list[Output], has_scores: bool) -> list[str]:
    """Return the output lines. With `has_scores`, a line starts with its score and a tab."""
    lines = []
    for text, score, _ in join_outputs(documents, outputs):
        line = re.sub(r"[\r\n]+", " ", text)
        lines.append(f"{'' if score is None else f'{score:.4f}'}\t{line}" if has_scores else line)
    return lines


def write_lines(lines: list[str], path: str):
    """Write lines to a file, complete or not at all, or to stdout for "-"."""
    text = "".join(f"{line}\n" for line in lines)
    if path == "-":
        try:
            sys.stdout.buffer.write(text.encode())
            sys.stdout.buffer.flush()
        except OSError as error:
            error.filename = "stdout"
            raise
        return
    with whole_file(Path(path)) as partial:
        partial.write_bytes(text.encode())
