"""Lines in, lines out: writes each line of a file or of stdin in another language, or its title, or what was trained.

    python examples/generate.py --model_name_or_path outputs/demo/copied --source_lang zh --target_lang bo \
        --input zh.txt --output bo.txt

Lines keep their order, and an empty line stays empty. Lines of like length go through the model together.
"""

import codecs
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from transformers import HfArgumentParser, PreTrainedModel

from modeling_xlm_swcm import XLMSWCMTokenizer
from modeling_xlm_swcm.checkpoints.errors import first_line
from modeling_xlm_swcm.checkpoints.inspection import read_model_config
from modeling_xlm_swcm.checkpoints.loading import load_model, load_tokenizer
from modeling_xlm_swcm.checkpoints.writing import whole_file
from modeling_xlm_swcm.training.arguments import check_counts, check_words
from modeling_xlm_swcm.training.rows import AS_TEXT, TO_UTF8


@dataclass
class GenerateArguments:
    model_name_or_path: str = field(metadata={"help": "the model: folder or Hub id"})
    source_lang: str = field(metadata={"help": "language of the input"})
    target_lang: str = field(metadata={"help": "language of the output"})
    input: str = field(default="-", metadata={"help": "a file with a text per line, UTF-8; - for stdin"})
    output: str = field(default="-", metadata={"help": "the file to write, whole or not at all; - for stdout"})
    num_beams: int = field(default=4, metadata={"help": "of the beam search; 1 for greedy decoding"})
    max_length: int | None = field(default=None, metadata={"help": "tokens per line, by default all the model has"})
    batch_tokens: int = field(default=4096, metadata={"help": "tokens in a batch, padding included"})

    def __post_init__(self):
        check_counts(self, "num_beams", "max_length", "batch_tokens")


def read_lines(path: str) -> list[str]:
    name = "stdin" if path == "-" else path
    data = (sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()).removeprefix(codecs.BOM_UTF8)
    if not data:
        raise ValueError(f"There are no lines in {name}; give a text per line.")
    texts = []
    for number, line in enumerate(data.removesuffix(b"\n").split(b"\n"), 1):
        if b"\0" in line:
            raise ValueError(f"Line {number} of {name} holds NUL bytes; convert the text with {TO_UTF8}.")
        try:
            texts.append(line.decode("utf-8").strip())
        except UnicodeDecodeError as error:
            raise ValueError(
                f"Line {number} of {name} is not UTF-8 ({error.reason}); convert the text with {TO_UTF8}."
            ) from error
    return texts


def encode(texts: list[str], tokenizer: XLMSWCMTokenizer, limit: int, path: str) -> dict[int, list[int]]:
    """Index of the line -> token ids, for the lines that are not empty."""
    rows = {index: tokenizer(text, **AS_TEXT)["input_ids"] for index, text in enumerate(texts) if text}
    for index, ids in rows.items():
        if len(ids) > limit:
            raise ValueError(
                f"Line {index + 1} of {path} has {len(ids)} tokens, and the model reads at most {limit}; split it."
            )
    return rows


def batches_by_length(rows: dict[int, list[int]], batch_tokens: int) -> Iterator[list[int]]:
    """The keys of `rows`, longest first, in groups of at most `batch_tokens` tokens with padding, or of one row."""
    batch = []
    for index in sorted(rows, key=lambda index: -len(rows[index])):
        if batch and len(rows[batch[0]]) * (len(batch) + 1) > batch_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


@torch.inference_mode()
def generate(model: PreTrainedModel, tokenizer: XLMSWCMTokenizer, rows: dict[int, list[int]], args) -> dict[int, str]:
    """Index of the line -> what the model writes for it, as one line."""
    options = {"forced_bos_token_id": tokenizer.get_lang_id(args.target_lang), "num_beams": args.num_beams}
    written = {}
    batches = list(batches_by_length(rows, args.batch_tokens))
    for batch in track(batches, "Writing", console=Console(stderr=True)):
        inputs = tokenizer.pad({"input_ids": [rows[index] for index in batch]}, return_tensors="pt").to(model.device)
        outputs = tokenizer.batch_decode(
            model.generate(**inputs, max_length=args.max_length, **options), skip_special_tokens=True
        )
        written |= {index: re.sub(r"[\r\n]+", " ", text).strip() for index, text in zip(batch, outputs, strict=True)}
    return written


def write_lines(lines: list[str], path: str):
    text = "".join(f"{line}\n" for line in lines)
    if path == "-":
        sys.stdout.buffer.write(text.encode())
        return
    with whole_file(Path(path)) as partial:
        partial.write_bytes(text.encode())


def run(args: GenerateArguments):
    """Everything that can be wrong with the input is found before the first line is written."""
    if args.output != "-" and not Path(args.output).absolute().parent.is_dir():
        raise ValueError(f"The folder of {args.output} does not exist.")
    if args.output != "-" and not os.access(Path(args.output).absolute().parent, os.W_OK):
        raise ValueError(f"The folder of {args.output} cannot be written to.")
    if Path(args.output).is_dir():
        raise ValueError(f"The output {args.output} is a folder; give a file.")
    if "-" not in (args.input, args.output) and Path(args.input).resolve() == Path(args.output).resolve():
        raise ValueError(f"The output {args.output} is the input, which would be lost; give another file.")
    config = read_model_config(args.model_name_or_path)
    limit = config.longest_input
    args.max_length = limit if args.max_length is None else min(args.max_length, limit)
    tokenizer = load_tokenizer(args.model_name_or_path, config.vocab_size)
    tokenizer.src_lang, tokenizer.tgt_lang = args.source_lang, args.target_lang
    texts = read_lines(args.input)
    rows = encode(texts, tokenizer, limit, "stdin" if args.input == "-" else args.input)
    model = load_model(args.model_name_or_path, dtype="auto").eval()
    written = generate(model.to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer, rows, args)
    write_lines([written.get(index, "") for index in range(len(texts))], args.output)


def main():
    try:
        parser = HfArgumentParser(GenerateArguments)
        check_words(parser, sys.argv[1:])
        (args,) = parser.parse_args_into_dataclasses()
        run(args)
    except FileNotFoundError as error:
        sys.exit(f"error: There is no file {error.filename}.")
    except (OSError, ValueError) as error:
        sys.exit(f"error: {first_line(error)}")


if __name__ == "__main__":
    main()
