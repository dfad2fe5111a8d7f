"""Exported models generate the same text as PyTorch, run without it, and refuse unsupported input."""

import json
import resource
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import openvino
import pytest
from support.commands import assert_refused
from support.encoders import edit_config
from support.folders import contents
from support.learners import TEXTS, UNSEEN
from transformers.utils import logging
from typer.testing import CliRunner

from modeling_xlm_swcm.cli import main
from modeling_xlm_swcm.conversion import ConversionError
from modeling_xlm_swcm.export import export, graph
from modeling_xlm_swcm.export.xlm_swcm_runtime import ExportedModel
from modeling_xlm_swcm.pipeline_xlm_swcm import XLMSWCMPipeline
from modeling_xlm_swcm.released_xlm_swcm import ReleasedXLMSWCMConfig


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_beams": 4, "length_penalty": -2.0},
        {"num_beams": 3, "length_penalty": 3.0, "num_return_sequences": 2},
        {"num_beams": 5, "max_new_tokens": 4},
        {"repetition_penalty": 1.4, "no_repeat_ngram_size": 1},
        {"num_beams": 3, "repetition_penalty": 0.6, "no_repeat_ngram_size": 2, "num_return_sequences": 3},
    ],
    ids=str,
)
def test_tokens_are_equal_to_pytorch(learner, exported, options):
    """Compare on trained and unseen sources of different lengths, with a tag and with the generation config."""
    runtime = ExportedModel(exported, threads=1)
    input_ids = learner.tokenizer(TEXTS + UNSEEN, padding=True, return_tensors="np")["input_ids"]
    for language in ("bo", "kk"):
        expected = learner.write(TEXTS + UNSEEN, language, **options)
        written = runtime.generate(input_ids, forced_bos_token_id=learner.tokenizer.get_lang_id(language), **options)
        np.testing.assert_array_equal(written, expected)
        assert len(np.unique(written[:, 2:], axis=0)) > 3
    expected = learner.write(TEXTS + UNSEEN, None, **options)
    np.testing.assert_array_equal(runtime.generate(input_ids, **options), expected)


@pytest.mark.filterwarnings("ignore:Number of incomplete outputs")
def test_texts_are_equal_to_the_pipeline(learner, exported):
    pipeline = XLMSWCMPipeline(model=learner.model, tokenizer=learner.tokenizer, src_lang="zh", tgt_lang="bo")
    runtime = ExportedModel(exported, threads=1)
    texts = [*TEXTS[:4], *UNSEEN, "no wind. The ferry stays!\n\n- two <mask> 😀  herons"]
    expected = [answer["translation_text"] for answer in pipeline(texts)]
    assert runtime(texts, src_lang="zh", tgt_lang="bo") == expected


def test_the_options_change_the_generated_tokens(learner):
    """Check that the test above compares different searches."""
    greedy, beams, short = (
        [learner.write(TEXTS + UNSEEN, language, **options).tolist() for language in ("bo", "kk")]
        for options in ({}, {"num_beams": 4}, {"num_beams": 4, "length_penalty": -2.0})
    )
    assert beams != short and greedy != short


def test_int8_is_smaller_and_generates_the_trained_texts(learner, exported, tmp_path):
    export(learner.folder, tmp_path / "int8", quantize="int8")
    runtime = ExportedModel(tmp_path / "int8", threads=1)
    input_ids = learner.tokenizer(TEXTS, padding=True, return_tensors="np")["input_ids"]
    for options in ({}, {"num_beams": 4}):
        expected = learner.write(TEXTS, "bo", max_new_tokens=12, **options)
        tag = learner.tokenizer.get_lang_id("bo")
        written = runtime.generate(input_ids, forced_bos_token_id=tag, max_new_tokens=12, **options)
        assert (written == expected).mean() > 0.98
    sizes = [(folder / "model.bin").stat().st_size for folder in (tmp_path / "int8", exported)]
    # The scales of the rows take much of the space, because a row has only 32 columns.
    assert sizes[0] < 0.5 * sizes[1]


def test_shared_weights_are_stored_once(learner, exported):
    # In a copied prefix decoder, the last encoder layer is frozen, and no output depends on it.
    parameters = 4 * learner.model.num_parameters(only_trainable=True)
    assert parameters <= (exported / "model.bin").stat().st_size < 1.01 * parameters


def change_settings(**fields) -> Callable[[Path], None]:
    def change(folder: Path):
        path = folder / "generation_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return change


def make_released(folder: Path):
    edit_config(folder, model_type=ReleasedXLMSWCMConfig.model_type, decoder_blocks=None, decoder_layers=None)


@pytest.fixture
def no_bars():
    logging.disable_progress_bar()
    yield
    logging.enable_progress_bar()


@pytest.mark.usefixtures("no_bars")
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (shutil.rmtree, ["does not exist"]),
        (lambda folder: (folder / "config.json").unlink(), ["has no config.json"]),
        (lambda folder: edit_config(folder, model_type="xlm-roberta"), ["xlm-roberta", "xlm-swcm convert"]),
        (make_released, ["uses the authors' original layers, which cannot be exported."]),
        (
            lambda folder: edit_config(folder, hidden_act="silu"),
            ["hidden_act in config.json", 'is "silu", which cannot be exported.', "gelu"],
        ),
        (
            # A call can switch sampling on.
            change_settings(min_p=0.1),
            ["generation_config.json", "sets min_p to 0.1,", "Remove this"],
        ),
        (change_settings(max_time=9.5), ["generation_config.json", "sets max_time to 9.5,", "Remove this setting."]),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), ["tokenizer.json"]),
        (change_settings(num_beams="4"), ["generation_config.json", "num_beams must be a whole number", "got '4'"]),
        (change_settings(max_length="24"), ["generation_config.json", "max_length must be a whole number"]),
        (change_settings(max_length=1), ["generation_config.json", "max_new_tokens must be", "(got 0)"]),
        (change_settings(eos_token_id=[2, 999]), ["generation_config.json", "eos_token_id must be", "(got 999)"]),
        (
            change_settings(forced_bos_token_id=-1),
            ["generation_config.json", "forced_bos_token_id must be", "(got -1)"],
        ),
        (change_settings(length_penalty=99), ["generation_config.json", "length_penalty must be", "(got 99)"]),
    ],
    ids=[
        *("no folder", "no config", "an encoder", "released", "activation", "settings", "time", "tokenizer"),
        *("beams", "length", "no new tokens", "end", "forced", "penalty"),
    ],
)
def test_models_that_cannot_be_exported_are_refused(folder, tmp_path, change, words):
    change(folder)
    result = CliRunner().invoke(main, ["export", str(folder), str(tmp_path / "exported")])
    assert_refused(result, str(folder), *words)
    assert not (tmp_path / "exported").exists()


def test_a_missing_extra_is_named(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[export.__module__], "find_spec", lambda name: None)
    result = CliRunner().invoke(main, ["export", str(folder), str(tmp_path / "exported")])
    assert_refused(result, "The export needs OpenVINO. Install it with pip install openvino.")


def test_an_old_openvino_is_named(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "modeling_xlm_swcm.export.graph", None)
    result = CliRunner().invoke(main, ["export", str(folder), str(tmp_path / "exported")])
    assert_refused(
        result, "The installed OpenVINO is too old or damaged. Install it again with pip install -U openvino."
    )


@pytest.mark.usefixtures("no_bars")
@pytest.mark.parametrize("size", [100, 10_000, 100_000])
def test_a_full_disk_is_one_sentence_and_leaves_nothing(folder, tmp_path, size):
    """Limit the size of files, so that the graph, the weights or the end of the weights cannot be written."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        result = CliRunner().invoke(main, ["export", str(folder), str(tmp_path / "outputs" / "exported")])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert_refused(result, f"Cannot write {tmp_path / 'outputs' / 'exported'}: ", "Free some space")
    assert not (tmp_path / "outputs").exists()


@pytest.mark.usefixtures("no_bars")
def test_weights_that_miss_their_last_byte_are_noticed(folder, tmp_path, monkeypatch):
    def save_short(graph, path, **options):
        openvino.save_model(graph, path, **options)
        weights = path.with_suffix(".bin")
        weights.write_bytes(weights.read_bytes()[:-1])

    monkeypatch.setattr(graph, "save_model", save_short)
    result = CliRunner().invoke(main, ["export", str(folder), str(tmp_path / "outputs" / "exported")])
    assert_refused(result, "OpenVINO failed to save the graph. Free some space, or choose another folder.")
    assert not (tmp_path / "outputs").exists()


@pytest.mark.usefixtures("no_bars")
def test_an_interrupted_export_leaves_the_old_folder(folder, tmp_path, monkeypatch):
    output = tmp_path / "outputs" / "exported"
    export(folder, output)
    before = contents(output)

    def interrupt(graph, path, **options):
        path.write_text("<net>")
        raise KeyboardInterrupt

    monkeypatch.setattr(graph, "save_model", interrupt)
    result = CliRunner().invoke(main, ["export", str(folder), str(output), "--overwrite"])
    assert (result.exit_code, result.stderr) == (130, "error: Interrupted. Nothing was written.\n")
    assert list(output.parent.iterdir()) == [output] and contents(output) == before


def test_the_source_is_not_overwritten(folder, tmp_path):
    before = contents(folder)
    with pytest.raises(ConversionError, match="already holds a model"):
        export(folder, folder)
    with pytest.raises(ConversionError, match="would be lost"):
        export(folder, folder, overwrite=True)
    with pytest.raises(ConversionError, match='`quantize` cannot be "int4". Use "none" or "int8".'):
        export(folder, tmp_path / "exported", quantize="int4")
    assert contents(folder) == before and not (tmp_path / "exported").exists()


def test_the_command_lists_the_written_files(folder, tmp_path):
    output = tmp_path / "exported"
    for options in ((), ("--overwrite",)):
        result = CliRunner().invoke(main, ["export", str(folder), str(output), "--quantize", "int8", *options])
        assert result.exit_code == 0, result.stderr
        assert str(output) in result.stdout and "model.bin (" in result.stdout and "kB)" in result.stdout
    assert {path.name for path in output.iterdir()} == {
        *("config.json", "model.xml", "model.bin", "tokenizer.json"),
        *("xlm_swcm_runtime.py", "xlm_swcm_checks.py", "xlm_swcm_logits.py", "xlm_swcm_search.py"),
        *("xlm_swcm_server.py", "punctuation_xlm_swcm.py", "sentences_xlm_swcm.py"),
    }
