"""`xlm-swcm vocab`: errors name the problem and what to do, and no files are left."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.encoders import (
    Tensors,
    edit_config,
    edit_tensors,
    make_encoder,
    roberta_tokenizer,
    save_encoder,
    xlm_roberta_tokenizer,
)
from support.folders import contents
from support.vocabularies import TEXTS, load_tokenizer, run_vocab
from transformers import RobertaForMaskedLM, XLMRobertaModel
from typer.testing import Result

from modeling_xlm_swcm.checkpoints.errors import ConversionError
from modeling_xlm_swcm.vocabulary import extend, rewrite


ACTIONS = {"extend": ["--size", 100], "trim": []}
EMBEDDINGS = "roberta.embeddings.word_embeddings.weight"


ONLY_ONE = "Use only one of --min-count, --size and --coverage."


@pytest.fixture(params=ACTIONS)
def action(request) -> str:
    return request.param


@pytest.fixture
def text(tmp_path) -> str:
    path = tmp_path / "mvf.txt"
    path.write_text("\n".join([*TEXTS["bo"], *TEXTS["mvf"]]))
    return str(path)


def run(action: str, source: Path, output: Path, *corpus: str) -> Result:
    return run_vocab(action, source, output, "--corpus", *corpus, *ACTIONS[action])


def assert_refused(result: Result, *words: str):
    """Check for exit code 1 and, below the progress bars, one error line that contains all `words`."""
    assert result.exit_code == 1, result.output
    *bars, error = result.stderr.splitlines()
    assert error.startswith("error: ")
    assert all("B/s]" in bar or "tensor/s]" in bar or not bar.strip() for bar in bars), bars
    for word in words:
        assert str(word) in error
    assert result.stdout == ""


@pytest.fixture(autouse=True)
def nothing_is_left(output):
    """Check after every test that no output was written."""
    yield
    assert contents(output.parent) == {}


def test_a_file_that_is_not_there(encoder_folder, output, text, action):
    assert_refused(
        run(action, encoder_folder, output, text, "bo.nothing.txt"), '"bo.nothing.txt" does not exist. Pass a'
    )


BAD_TEXTS = {
    "nothing": (b"", ["has no text."]),
    "empty lines": (b"\n\n  \n", ["has no text."]),
    "another encoding": (b"first\nsecond\n\xff\xfea\x00\n", ["zh.txt:3 is not UTF-8. Correct", "iconv"]),
    "another encoding without a mark": (
        "first\nsecond".encode("utf-16-le"),
        ["zh.txt:1 contains NUL bytes", "iconv"],
    ),
    "one endless line": (
        b"first\n" + b"word " * 250_000,
        ["zh.txt:2 is longer than 1 MiB. Write one sentence"],
    ),
}


@pytest.mark.parametrize("case", BAD_TEXTS)
@pytest.mark.parametrize("option", ["--corpus", "--eval"])
def test_bad_text(encoder_folder, output, text, tmp_path, action, case, option):
    content, words = BAD_TEXTS[case]
    (tmp_path / "zh.txt").write_bytes(content)
    files = [text, tmp_path / "zh.txt"] if option == "--corpus" else [text, "--eval", tmp_path / "zh.txt"]
    assert_refused(run(action, encoder_folder, output, *files), tmp_path / "zh.txt", *words)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["extend", "--size", 0], ["--size must be from 1 to 10,000,000 (got 0). Use a larger size."]),
        (["extend", "--size", 20], ["--size must be at least ", " for this corpus (got 20). Use a larger size."]),
        (["trim", "--size", 30], ["--size must be at least ", "characters", "(got 30). Use a larger size."]),
        (["trim", "--size", 90, "--min-count", 2], ["--min-count and --size cannot be combined.", ONLY_ONE]),
        (["trim", "--size", 90, "--coverage", 0.9], ["--size and --coverage cannot be combined.", ONLY_ONE]),
        (["trim", "--coverage", 0.9, "--min-count", 2], ["--min-count and --coverage cannot be combined.", ONLY_ONE]),
        (["trim", "--coverage", 0], ["--coverage must be above 0 and at most 1 (got 0.0)."]),
        (["trim", "--coverage", 1.5], ["--coverage must be above 0 and at most 1 (got 1.5)."]),
        (["trim", "--pad-to-multiple-of", 0], ["--pad-to-multiple-of must be from 1 to 65536 (got 0)."]),
        (["trim", "--pad-to-multiple-of", 10**9], ["--pad-to-multiple-of must be from 1 to 65536 (got 1000000000)."]),
        (["trim", "--min-count", 0], ["--min-count must be at least 1 (got 0). Use a larger number."]),
        (["extend", "--size", 10**11], ["--size must be from 1 to 10,000,000 (got 100000000000). Use a smaller"]),
        (["extend", "--size", -(10**19)], ["--size must be from 1 to 10,000,000 (got -10000000000000000000)."]),
        (["trim", "--size", -1], ["--size must be at least ", "(got -1). Use a larger size."]),
        (["trim", "--size", 0], ["--size must be at least ", "(got 0). Use a larger size."]),
        (["trim", "--min-count", -1], ["--min-count must be at least 1 (got -1). Use a larger number."]),
        (["trim", "--coverage", "nan"], ["--coverage must be above 0 and at most 1 (got nan)."]),
        (["trim", "--coverage", "1e400"], ["--coverage must be above 0 and at most 1 (got inf)."]),
        (["trim", "--pad-to-multiple-of", -(10**19)], ["must be from 1 to 65536 (got -10000000000000000000)."]),
    ],
    ids=lambda value: " ".join(map(str, value)),
)
def test_bad_options(encoder_folder, output, text, arguments, words):
    action, *options = arguments
    assert_refused(run_vocab(action, encoder_folder, output, "--corpus", text, *options), *words)


@pytest.mark.parametrize("seed", [-1, 2**32, 10**30])
def test_a_seed_that_no_generator_takes(encoder_folder, output, text, seed):
    with pytest.raises(ConversionError, match=rf"`seed` must be from 0 to 4294967295 \(got {seed}\). Use another"):
        extend(encoder_folder, output, corpus=[text], size=100, seed=seed)


def test_a_plot_must_be_a_regular_file(encoder_folder, output, text, action, tmp_path):
    os.mkfifo(tmp_path / "change.png")
    arguments = ["--corpus", text, "--plot", tmp_path / "change.png", *ACTIONS[action]]
    result = run_vocab(action, encoder_folder, output, *arguments)
    assert_refused(result, "--plot must name a PNG file", "change.png is not a regular file. Use another name.")


def test_text_that_is_given_twice(encoder_folder, output, text, action):
    result = run(action, encoder_folder, output, text, f"bo={text}")
    assert_refused(result, text, "is given twice. Pass each text file once.")


@pytest.mark.parametrize("option", ["--corpus", "--eval"])
def test_languages_that_differ_only_in_case(encoder_folder, output, text, action, option, tmp_path):
    (tmp_path / "other.txt").write_text("x\n")
    arguments = ["--corpus", f"bo={text}", option, f"BO={tmp_path / 'other.txt'}", *ACTIONS[action]]
    result = run_vocab(action, encoder_folder, output, *arguments)
    assert_refused(result, 'language codes "bo" and "BO" differ only in case. Use one spelling for each language.')


def test_text_without_tokens(encoder_folder, output, tmp_path):
    (tmp_path / "bo.txt").write_text("\u2581\n")
    result = run("extend", encoder_folder, output, str(tmp_path / "bo.txt"))
    assert_refused(result, "has every token of this corpus. Use a larger --size or other text.")


@pytest.mark.parametrize("plot", ["change.pdf", "."])
def test_a_plot_must_be_a_png_file(encoder_folder, output, text, action, plot):
    result = run_vocab(action, encoder_folder, output, "--corpus", text, "--plot", plot, *ACTIONS[action])
    assert_refused(result, "--plot must name a PNG file", plot, "Use a name that ends in .png.")


def test_padding_needs_an_output_bias(tmp_path, output, text):
    tokenizer = xlm_roberta_tokenizer()
    source = save_encoder(tmp_path / "bare", make_encoder(XLMRobertaModel, tokenizer), tokenizer)
    result = run_vocab("trim", source, output, "--corpus", text, "--pad-to-multiple-of", 64)
    assert_refused(result, "has no output bias", "Leave out --pad-to-multiple-of")


def test_the_smallest_size_is_named_and_works(encoder_folder, tmp_path, text, output):
    refused = run_vocab("trim", encoder_folder, output, "--corpus", text, "--size", 1)
    least = refused.stderr.split("must be at least ")[1].split()[0]
    assert run_vocab("trim", encoder_folder, tmp_path / "least", "--corpus", text, "--size", least).exit_code == 0
    assert len(load_tokenizer(tmp_path / "least")) == int(least)
    one_less = run_vocab("trim", encoder_folder, output, "--corpus", text, "--size", int(least) - 1)
    assert_refused(one_less, least)


def test_nothing_new_to_learn(encoder_folder, output, tmp_path, text):
    (tmp_path / "bo.txt").write_text("ང ད ང ད")
    result = run_vocab("extend", encoder_folder, output, "--corpus", tmp_path / "bo.txt", "--size", 3)
    assert_refused(result, encoder_folder, "has every token of this corpus. Use a larger --size or other text.")


def remove_tokenizer(folder: Path):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()


def give_merges(folder: Path):
    tokenizer = roberta_tokenizer()
    save_encoder(folder, make_encoder(RobertaForMaskedLM, tokenizer), tokenizer)


def add_tokens(folder: Path):
    tokenizer = load_tokenizer(folder)
    tokenizer.add_tokens(["one more"])
    tokenizer.save_pretrained(folder)


def tensors(edit: Callable[[Tensors], Tensors]) -> Callable[[Path], None]:
    return lambda folder: edit_tensors(folder, edit)


BAD_SOURCES = {
    "no tokenizer": (remove_tokenizer, ["has no tokenizer"]),
    "a BPE tokenizer": (give_merges, ["has type BPE", "use a checkpoint with a Unigram or WordPiece tokenizer"]),
    "a tokenizer larger than the embedding": (add_tokens, ["149 tokens", "148 rows"]),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), ["no weights"]),
    "no config": (lambda folder: (folder / "config.json").unlink(), ["no config.json"]),
    "a generation config that is no JSON": (
        lambda folder: (folder / "generation_config.json").write_text("{"),
        ["generation_config.json", "not valid JSON"],
    ),
    "another kind of model": (lambda folder: edit_config(folder, model_type="t5"), ["t5", "xlm-roberta"]),
    "rows that the config has not": (
        lambda folder: edit_config(folder, vocab_size=150),
        [EMBEDDINGS, "has 148 rows", "vocab_size in config.json is 150"],
    ),
    "a config without a vocabulary": (
        lambda folder: edit_config(folder, vocab_size=None),
        ["has 148 rows", "vocab_size in config.json is None"],
    ),
    "a bias of another length": (
        tensors(lambda found: found | {"lm_head.bias": torch.ones(20)}),
        ["lm_head.bias", "has 20 rows", "vocab_size in config.json is 148"],
    ),
    "no embedding": (
        tensors(lambda found: {name: tensor for name, tensor in found.items() if name != EMBEDDINGS}),
        ["has no word embeddings. Use an encoder"],
    ),
    "an id that the tokenizer lacks": (
        lambda folder: edit_config(folder, eos_token_id=9999),
        ["config.json", "has the token id 9999", "148 tokens. Correct the id."],
    ),
    "a token id that is text": (
        lambda folder: edit_config(folder, forced_eos_token_id="2"),
        ["forced_eos_token_id in config.json", "has the token id '2'. Use a whole number."],
    ),
    "no architecture": (
        lambda folder: edit_config(folder, architectures=None),
        ["architectures in config.json", "(got null). Set the class", "XLMRobertaForMaskedLM"],
    ),
    "an architecture of another type": (
        lambda folder: edit_config(folder, architectures=["BertForMaskedLM"]),
        ["architectures in config.json", 'class for xlm-roberta (got ["BertForMaskedLM"])'],
    ),
    "an architecture of nobody": (
        lambda folder: edit_config(folder, architectures=["XLMRobertaForEverything"]),
        ['(got ["XLMRobertaForEverything"]). Set the class', "XLMRobertaForMaskedLM"],
    ),
}


@pytest.mark.parametrize("case", BAD_SOURCES)
def test_a_bad_source(own_encoder, output, text, action, case):
    change, words = BAD_SOURCES[case]
    change(own_encoder)
    before = contents(own_encoder)
    assert_refused(run(action, own_encoder, output, text), *words)
    assert_refused(run(action, own_encoder, output, text, "--dry-run"), *words)
    assert contents(own_encoder) == before


def test_a_folder_that_does_not_exist(tmp_path, output, text, action):
    assert_refused(run(action, tmp_path / "nothing", output, text), tmp_path / "nothing", "does not exist")


def test_an_output_with_content_is_kept(encoder_folder, tmp_path, text, action):
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "thesis.tex").write_text("years of work")
    assert_refused(run(action, encoder_folder, kept, text), kept, "is not empty and holds no model")
    assert_refused(run(action, encoder_folder, kept, text, "--overwrite"), kept, "is not empty and holds no model")
    assert contents(kept) == {"thesis.tex": b"years of work"}


@pytest.mark.parametrize("place", [".", ".."], ids=["the source", "its parent"])
def test_the_source_is_not_overwritten(own_encoder, text, action, place):
    (own_encoder.parent / "config.json").write_text("{}")
    before = contents(own_encoder.parent)
    result = run(action, own_encoder, (own_encoder / place).resolve(), text, "--overwrite")
    assert_refused(result, "would be lost")
    assert contents(own_encoder.parent) == before


@pytest.mark.parametrize("name", ["model", "mvf.txt"])
def test_the_text_is_not_overwritten(encoder_folder, tmp_path, text, action, name):
    """A corpus in the folder to replace would be lost."""
    folder = tmp_path / "old"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    inside = folder / "mvf.txt"
    inside.write_bytes(Path(text).read_bytes())
    result = run(action, encoder_folder, folder, inside if name == "model" else text, "--overwrite")
    if name == "model":
        assert_refused(result, inside, "would be lost")
        assert inside.is_file()
    else:
        assert result.exit_code == 0


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (KeyboardInterrupt(), 130, "Interrupted. Nothing was written."),
        (OSError("the disk is gone"), 1, "the disk is gone"),
    ],
    ids=["interrupted", "a full disk"],
)
@pytest.mark.parametrize("step", ["save_weights", "check_written_tensors"])
def test_a_failure_leaves_nothing(encoder_folder, output, text, action, monkeypatch, error, code, said, step):
    work = getattr(rewrite, step)

    def fail(*arguments):
        work(*arguments)
        raise error

    monkeypatch.setattr(rewrite, step, fail)
    result = run(action, encoder_folder, output, text)
    assert result.exit_code == code
    assert result.stderr.splitlines()[-1] == f"error: {said}"
    assert contents(output.parent) == {}


def test_a_tensor_that_changes_during_writing_is_noticed(encoder_folder, output, text, action, monkeypatch):
    def save_wrongly(source, old_ids, dtype, tensors, folder, save_weights=rewrite.save_weights):
        tensors[EMBEDDINGS][5, 7] += 1e-6
        save_weights(source, old_ids, dtype, tensors, folder)

    monkeypatch.setattr(rewrite, "save_weights", save_wrongly)
    result = run(action, encoder_folder, output, text)
    error = f"error: The written tensor {EMBEDDINGS} differs from {encoder_folder}. Report this bug."
    assert result.stderr.splitlines()[-1] == error


def test_a_plot_without_matplotlib_is_refused_before_the_work(encoder_folder, output, text, action, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    module = sys.modules[f"modeling_xlm_swcm.vocabulary.{action}"]
    monkeypatch.setattr(module, "read_source", lambda *arguments: pytest.fail("the error must come earlier"))
    result = run(action, encoder_folder, output, text, "--plot", output.with_suffix(".png"))
    assert_refused(result, "--plot needs matplotlib. Install it with pip install matplotlib.")
