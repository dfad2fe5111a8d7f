"""examples/generate.py and `generation`: one line of output for each line of input, in order."""

import errno
import io
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import generate
import pytest
from support.corpus_files import write_rows
from support.folders import cut_short
from support.models import teach
from transformers import DataCollatorForSeq2Seq

from modeling_xlm_swcm import XLMSWCMForConditionalGeneration, XLMSWCMTokenizer
from modeling_xlm_swcm.checkpoints.errors import describe_error
from modeling_xlm_swcm.corpora.bad_rows import DataError
from modeling_xlm_swcm.training import generation
from modeling_xlm_swcm.training.generation import GenerateArguments, generate_file


# The model learns these targets in Kazakh and Tibetan.
PAIRS = {
    "我们": {"kk": "жел жоқ", "bo": "ང་ཚོ"},
    "河边没有风": {"kk": "өзен", "bo": "ཁྱེད་རང"},
    "早上去河边": {"kk": "бардық", "bo": "ཞོགས་པ"},
}


@pytest.fixture(scope="module")
def folder(learner_folder, tmp_path_factory) -> Path:
    """Return the folder of a model that knows `PAIRS` by heart."""
    output = shutil.copytree(learner_folder, tmp_path_factory.mktemp("generate") / "model")
    model = XLMSWCMForConditionalGeneration.from_pretrained(output)
    tokenizer = XLMSWCMTokenizer.from_pretrained(output, src_lang="zh")
    rows = []
    for source, targets in PAIRS.items():
        for tokenizer.tgt_lang, target in targets.items():
            rows.append(dict(tokenizer(source, text_target=target)))
    teach(model, DataCollatorForSeq2Seq(tokenizer, model)(rows)).save_pretrained(output)
    return output


def arguments(folder: Path, **options) -> GenerateArguments:
    return GenerateArguments(
        str(folder), **{"source_lang": "zh", "target_lang": "bo", "num_beams": 2, "max_length": 12} | options
    )


@pytest.mark.parametrize(("target", "batch_tokens"), [("kk", 1), ("bo", 22), ("kk", 4096)])
def test_every_line_is_what_the_model_writes_for_it(folder, tmp_path, target, batch_tokens):
    lines = ["我们", "", "河边没有风", "早上去河边", "  ", "我们", ""]
    (tmp_path / "in.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    output = tmp_path / "out.txt"
    files = {"input": str(tmp_path / "in.txt"), "output": str(output)}
    generate_file(arguments(folder, **files, target_lang=target, batch_tokens=batch_tokens))
    expected = [PAIRS[line][target] if line.strip() else "" for line in lines]
    assert output.read_text(encoding="utf-8").split("\n") == [*expected, ""]
    assert {path.name for path in tmp_path.iterdir()} == {"in.txt", "out.txt"}


def test_a_translation_keeps_spaces_and_list_markers(folder, tmp_path, caplog):
    lines = ["  1. 我们。早上去河边", "", "- 河边没有风  我们", "***", "- " + "我们，" * 20]
    (tmp_path / "in.txt").write_text("\n".join(lines), encoding="utf-8")
    output = tmp_path / "out.txt"
    generate_file(arguments(folder, input=str(tmp_path / "in.txt"), output=str(output)))
    written = output.read_text(encoding="utf-8").split("\n")
    model, tokenizer = (
        XLMSWCMForConditionalGeneration.from_pretrained(folder),
        XLMSWCMTokenizer.from_pretrained(folder),
    )

    def write(sentence: str) -> str:
        inputs = tokenizer(sentence, src_lang="zh", return_tensors="pt")
        tag = tokenizer.get_lang_id("bo")
        ids = model.generate(**inputs, forced_bos_token_id=tag, num_beams=2, max_new_tokens=12)
        return tokenizer.decode(ids[0], skip_special_tokens=True)

    assert written[0] == f"  1. {write('我们。')} {write('早上去河边')}"
    assert written[1:4] == ["", f"- {write('河边没有风  我们')}", "***"]
    assert written[4].startswith("- ")
    assert "Text 5: A sentence has 64 tokens, but the maximum is 38. It is cut into 2 parts." in caplog.text


def test_scores_and_several_texts_of_a_line(folder, tmp_path):
    lines = ["我们", "***", "早上去河边"]
    (tmp_path / "in.txt").write_text("\n".join(lines), encoding="utf-8")
    outputs = {}
    for name, options in (("best", {}), ("several", {"num_return_sequences": 2}), ("plain", {"scores": False})):
        files = {"input": str(tmp_path / "in.txt"), "output": str(tmp_path / name)}
        generate_file(arguments(folder, **files, **{"scores": True} | options))
        outputs[name] = (tmp_path / name).read_text(encoding="utf-8").splitlines()
    scores, texts = zip(*(line.split("\t") for line in outputs["several"]), strict=True)
    assert list(texts[::2]) == outputs["plain"] == [PAIRS["我们"]["bo"], "***", PAIRS["早上去河边"]["bo"]]
    assert outputs["best"] == outputs["several"][::2] and scores[2:4] == ("", "")
    # The model knows the first text by heart. The second text is another one.
    assert all(float(scores[best]) > -0.1 > float(scores[best + 1]) for best in (0, 4))
    assert all(texts[best] != texts[best + 1] for best in (0, 4))
    with pytest.raises(ValueError, match="--num_return_sequences must be at most --num_beams .got 3 with 2 beams."):
        arguments(folder, num_return_sequences=3)


def test_terms_are_encouraged_and_missing_terms_are_counted(folder, tmp_path, caplog):
    (tmp_path / "in.txt").write_text("早上去河边\n\n我们。 河边没有风", encoding="utf-8")
    (tmp_path / "terms.tsv").write_text("我们\tөзен\n没有\tжел жоқ\n早上\tбардық\n", encoding="utf-8")
    files = {"input": str(tmp_path / "in.txt"), "output": str(tmp_path / "out.txt"), "target_lang": "kk"}
    for strength, first in ((20.0, "өзен"), (1e-9, "жел жоқ")):
        caplog.clear()
        generate_file(arguments(folder, **files, terms=str(tmp_path / "terms.tsv"), terms_strength=strength))
        lines = (tmp_path / "out.txt").read_text(encoding="utf-8").splitlines()
        assert lines[:2] == ["бардық", ""] and lines[2].startswith(first)
        message = '2 of 3 target terms are missing in the output (first: text 3, "өзен"). Pass a larger --terms_stre'
        assert (message in caplog.text) == (strength < 1)
    with pytest.raises(ValueError, match="terms_strength must be a number above 0 .got -1.0.. Use another number."):
        arguments(folder, terms_strength=-1.0)
    with pytest.raises(ValueError, match="--terms_strength has no effect without --terms. Pass a file with --terms."):
        arguments(folder, terms_strength=2.0)


@pytest.mark.parametrize("options", [{"split": False}, {"source_lang": "bo", "target_lang": "bo"}])
def test_a_line_is_one_input_without_split_and_in_one_language(folder, tmp_path, options):
    tokenizer = XLMSWCMTokenizer.from_pretrained(folder)
    args = arguments(folder, **options)
    assert generation.make_documents([" 我们。 我们。 ", " "], tokenizer, args, 38) == [
        ["", "我们。 我们。", ""],
        [""],
    ]
    args.split = True
    assert generation.make_documents(["我们。 我们。"], tokenizer, args, 38) == [["", "我们。", " ", "我们。", ""]]


def test_stdin_to_stdout_with_a_bar_on_stderr(folder, monkeypatch, capfdbinary):
    words = ["--model_name_or_path", str(folder), "--source_lang", "zh", "--target_lang", "bo"]
    monkeypatch.setattr(sys, "argv", ["generate.py", *words])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("我们\r\n\n早上去河边".encode())))
    generate.main()
    sys.stdout.flush()
    stdout, stderr = capfdbinary.readouterr()
    assert stdout.decode() == f"{PAIRS['我们']['bo']}\n\n{PAIRS['早上去河边']['bo']}\n"
    assert b"Generating" in stderr


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1"])
def test_the_file_behind_stdout_keeps_its_text(folder, tmp_path, capfdbinary, name):
    (tmp_path / "in.txt").write_text("我们\n", encoding="utf-8")
    os.write(1, b"before\n")
    generate_file(arguments(folder, input=str(tmp_path / "in.txt"), output=name))
    sys.stdout.flush()
    assert capfdbinary.readouterr().out.decode() == f"before\n{PAIRS['我们']['bo']}\n"


def test_the_file_behind_stderr_is_refused(folder, tmp_path, capfdbinary):
    with pytest.raises(ValueError, match="--output /dev/fd/2 is the file of stderr. Name another file."):
        generate_file(arguments(folder, input=str(tmp_path / "in.txt"), output="/dev/fd/2"))


@pytest.mark.parametrize(("stream", "option"), [("stdin", "--input"), ("stdout", "--output")])
def test_a_closed_stream_is_named(folder, monkeypatch, stream, option):
    monkeypatch.setattr(sys, stream, None)
    with pytest.raises(ValueError, match=f"^{option} is not set, and {stream} is closed. Name a file with {option}."):
        generate_file(arguments(folder))


def test_a_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "in.txt").write_bytes("\ufeff我们\n\ufeff\n".encode())
    assert generation.read_texts(str(tmp_path / "in.txt"), "zh") == ["我们", "\ufeff"]


@pytest.mark.parametrize("name", ["in.jsonl", "in.csv.gz", "in.tsv", "in.parquet"])
def test_rows_of_other_formats_are_lines(tmp_path, name):
    path = write_rows(tmp_path / name, [{"zh": zh, "kk": kk} for zh, kk in [("我们", "a"), ("", "b"), ("河", "c")]])
    assert generation.read_texts(path, "zh") == ["我们", "", "河"]
    with pytest.raises(DataError, match=r'no column "bo" or "text" \(columns: zh, kk\)'):
        generation.read_texts(path, "bo")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("in.jsonl", '{"zh": "我们"}\n\n{"zh": "河"}\n'),
        ("in.csv", "zh\n我们\n\n河\n"),
        ("in.tsv", "kk\tzh\na\t我们\n\t\nb\t河\n"),
    ],
)
def test_blank_rows_of_other_formats_are_lines(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert generation.read_texts(str(tmp_path / name), "zh") == ["我们", "", "河"]


@pytest.mark.parametrize("name", ["num_beams", "max_length", "batch_tokens"])
def test_numbers_below_one_are_refused(folder, name):
    with pytest.raises(ValueError, match=f"--{name} must be .* 1.* .got 0."):
        arguments(folder, **{name: 0})


def test_errors_are_one_sentence(folder, tmp_path, monkeypatch):
    path = tmp_path / "in.txt"
    path.write_bytes(b"ab\n\xe7\n")
    words = ["--model_name_or_path", folder, "--source_lang", "zh", "--target_lang", "bo", "--input", path]
    for expected in (
        f"error: 1 row cannot be used: {path}:2 is not UTF-8. "
        "Correct the data (convert text with iconv -f ENCODING -t UTF-8).",
        f"error: {path} does not exist. Check the path.",
    ):
        monkeypatch.setattr(sys, "argv", ["generate.py", *map(str, words)])
        with pytest.raises(SystemExit) as error:
            generate.main()
        assert error.value.code == expected
        path.unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--sorce_lang", "zh"], "Unknown option --sorce_lang. Did you mean --source_lang?"),
        (["--max_new_tokens", "9"], "Unknown option --max_new_tokens. Did you mean --max_length?"),
        (["--fire=1"], "Unknown option --fire. Run with --help to list the options."),
        (["bo.txt"], "--source_lang takes one value (got zh bo.txt). Pass one value."),
    ],
)
def test_words_that_are_no_options_are_named(monkeypatch, words, message):
    needed = [] if "--sorce_lang" in words else ["--source_lang", "zh"]
    command = ["generate.py", "--model_name", "m", "--target-lang", "bo", *needed, *words]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as error:
        generate.main()
    assert error.value.code == f"error: {message}"


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (
            "a\n\n" + "河" * 200,
            {"split": False},
            r"Text 3 of .*in.txt has 20\d tokens, but the model reads at most 38. Split the text.",
        ),
        ("a", {"output": "."}, r"--output \. is a folder. Name a file."),
        ("a", {"target_lang": "ug"}, 'Unknown language "ug"'),
        ("a", {"output": "in.txt"}, r"--output in\.txt would overwrite .*in\.txt, which is read. Name another file."),
        ("a", {"input": "i*.txt", "output": "./in.txt"}, "would overwrite in.txt, which is read."),
        ("a", {"input": "-", "terms": "in.txt", "output": "in.txt"}, "would overwrite in.txt, which is read."),
        ("a", {"output": ""}, "--output is empty. Name a file."),
        ("a", {"output": "out.txt.gz"}, r"--output out\.txt\.gz is plain text. Use a name with the ending .txt."),
        ("a", {"terms": "/dev/null"}, "/dev/null is not a regular file. Pass a file."),
        ("", {}, r"in\.txt is empty. Write one text per line."),
        ("\ufeff", {}, r"in\.txt is empty."),
        ("a\nb\0c", {}, r"in\.txt:2 contains NUL bytes. Correct the data \(convert text with iconv"),
        (
            "a",
            {"output": "nowhere/out.txt"},
            "The folder of --output nowhere/out.txt does not exist. Create it first.",
        ),
        ("a", {"model_name_or_path": "./nowhere"}, "The folder ./nowhere does not exist"),
    ],
)
def test_bad_input_is_refused_and_nothing_written(folder, tmp_path, monkeypatch, content, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.txt").write_text(content, encoding="utf-8")
    args = arguments(folder, **{"input": str(tmp_path / "in.txt"), "output": str(tmp_path / "out.txt")})
    for name, value in options.items():
        setattr(args, name, value)
    with pytest.raises(ValueError, match=message):
        generate_file(args)
    assert [path.name for path in tmp_path.iterdir()] == ["in.txt"]
    assert (tmp_path / "in.txt").read_text(encoding="utf-8") == content


def test_a_folder_that_cannot_be_written_to_is_said_first(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: path != tmp_path)
    with pytest.raises(ValueError, match="The folder of --output .*out.txt is not writable. Choose another folder."):
        generate_file(arguments(folder, input="nowhere.txt", output=str(tmp_path / "out.txt")))


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json"])
def test_a_damaged_model_is_named(folder, tmp_path, file):
    (tmp_path / "in.txt").write_text("我们\n", encoding="utf-8")
    damaged = shutil.copytree(folder, tmp_path / "model")
    cut_short(damaged / file)
    with pytest.raises(ValueError, match=f"{damaged / file}.*Download it again|{damaged / file}.*download it again"):
        generate_file(arguments(damaged, input=str(tmp_path / "in.txt"), output=str(tmp_path / "out.txt")))
    assert not (tmp_path / "out.txt").exists()


def test_special_tokens_and_tags_in_a_line_are_text(folder):
    tokenizer = XLMSWCMTokenizer.from_pretrained(folder)
    lines = ["我们 <bo> </s>", "", "<mask><s>"]
    documents = generation.make_documents(lines, tokenizer, arguments(folder, split=False), 38)
    rows = generation.encode_lines(documents, tokenizer, "zh", 38, "in.txt")
    assert [number for number, _ in rows] == [1, 3]
    control = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    for ids in rows.values():
        assert ids[:2] == [tokenizer.bos_token_id, tokenizer.get_lang_id("zh")]
        assert [token in control for token in ids].count(True) == 3
    assert tokenizer.src_lang is None


def test_characters_that_the_model_cannot_read_are_said(folder, caplog):
    tokenizer = XLMSWCMTokenizer.from_pretrained(folder)
    generation.encode_lines([["", "ქართ\x1bული", ""]], tokenizer, "zh", 38, "in.txt")
    assert r'of the tokens of the texts in zh are <unk> (example: "ქართ\x1bული").' in caplog.text


@pytest.mark.parametrize("max_length", [2, 12])
def test_lines_that_the_limit_cuts_are_counted(folder, tmp_path, caplog, max_length):
    (tmp_path / "in.txt").write_text("\n我们\n河边没有风\n", encoding="utf-8")
    output = tmp_path / "out.txt"
    generate_file(arguments(folder, input=str(tmp_path / "in.txt"), output=str(output), max_length=max_length))
    lines = output.read_text(encoding="utf-8").split("\n")[1:3]
    whole = [PAIRS["我们"]["bo"], PAIRS["河边没有风"]["bo"]]
    if max_length == 12:
        assert (lines, "incomplete" in caplog.text) == (whole, False)
    else:
        # One token of each line follows the language tag.
        assert all(text.startswith(line) and line != text for line, text in zip(lines, whole, strict=True))
        message = (
            "Texts with incomplete outputs: 2 (first: text 2). The maximum is 2 tokens. Pass a larger --max_length,"
        )
        assert f"{message} or split long sentences." in caplog.text


def test_a_full_disk_behind_stdout_is_named(monkeypatch):
    def fail(text: bytes):
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch, pytest.raises(OSError) as caught:
        patch.setattr(sys, "stdout", SimpleNamespace(buffer=SimpleNamespace(write=fail)))
        generation.write_lines(["text"], "-")
    assert describe_error(caught.value) == "No space left on device: stdout. Free some space."
