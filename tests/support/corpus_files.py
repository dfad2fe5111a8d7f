"""Small corpora as files, and a tokenizer for them."""

import csv
import gzip
import json
from pathlib import Path

import pyarrow
from pyarrow import parquet
from support.encoders import xlm_roberta_tokenizer

from modeling_xlm_swcm import XLMSWCMTokenizer
from modeling_xlm_swcm.training.mixture import CorpusConfig
from modeling_xlm_swcm.training.rows import BadRows


def new_tokenizer() -> XLMSWCMTokenizer:
    encoder = xlm_roberta_tokenizer(*"0123456789W")
    return XLMSWCMTokenizer(
        tokenizer_object=encoder.backend_tokenizer, languages=["zh", "ug", "en"], **encoder.special_tokens_map
    )


def write_rows(path: Path, rows: list[dict]) -> str:
    """Write rows in the format of the file name, and return its path."""
    suffix = path.name.removesuffix(".gz").split(".")[-1]
    if suffix == "parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        return str(path)
    with (
        gzip.open(path, "wt", encoding="utf-8") if path.suffix == ".gz" else open(path, "w", encoding="utf-8") as file
    ):
        if suffix == "jsonl":
            file.writelines(json.dumps(row) + "\n" for row in rows)
        elif suffix == "csv":
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
        elif suffix == "tsv":
            file.writelines("\t".join(row) + "\n" for row in [rows[0], *(row.values() for row in rows)])
        else:
            file.writelines(row["text"] + "\n" for row in rows)
    return str(path)


def write_lines(path: Path, *lines: str | bytes) -> str:
    path.write_bytes(b"".join((line if isinstance(line, bytes) else line.encode()) + b"\n" for line in lines))
    return str(path)


def read_all(corpus: CorpusConfig, tokenizer, tables, bad_rows=None, max_length=64) -> list[dict]:
    bad_rows = bad_rows or BadRows()
    examples = list(corpus.read(tokenizer, max_length, tables, bad_rows))
    bad_rows.report()
    return examples
