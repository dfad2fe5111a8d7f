"""A vocabulary does not depend on the format of its corpus."""

import json
from pathlib import Path

import pytest
from support.corpus_files import write_rows

from modeling_xlm_swcm.conversion import ConversionError
from modeling_xlm_swcm.vocabulary import extend, trim


@pytest.mark.parametrize("name", ["pairs.jsonl", "pairs.tsv", "pairs.csv.gz", "pairs.parquet", "pairs.txt.gz"])
def test_extend_and_trim_read_every_format(reader, texts, tmp_path, name):
    lines = Path(texts["bo"]).read_text(encoding="utf-8").splitlines()
    column = "text" if ".txt" in name else "bo"
    file = write_rows(tmp_path / name, [{column: line} for line in lines])
    written = {}
    for corpus in (f"bo={texts['bo']}", f"bo={file}"):
        extend(reader, tmp_path / "extended", corpus=[corpus], size=120, overwrite=True)
        trim(tmp_path / "extended", tmp_path / "trimmed", corpus=[corpus], min_count=2, overwrite=True)
        files = [tmp_path / folder / "tokenizer.json" for folder in ("extended", "trimmed")]
        written[corpus] = [path.read_bytes() for path in files]
    plain, other = written.values()
    assert plain == other
    pieces = {piece for piece, _ in json.loads(plain[0])["model"]["vocab"]}
    assert not {piece for piece in pieces if "\\u" in piece or '":' in piece}


def test_rows_that_cannot_be_used_stop_the_command(reader, tmp_path):
    (tmp_path / "bo.jsonl").write_text('{"text": "a"}\n{"text": 3}\n{"text": null}\n{"text"\n', encoding="utf-8")
    message = r'^2 rows cannot be used: .*bo\.jsonl:2 has no text in the column "text" \(found type int\); .*'
    with pytest.raises(ConversionError, match=message + r"bo\.jsonl:4 is not a JSON object .*Correct the data\.$"):
        extend(reader, tmp_path / "extended", corpus=[str(tmp_path / "bo.jsonl")], size=120)
    assert not (tmp_path / "extended").exists()
