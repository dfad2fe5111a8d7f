"""`xlm-swcm evaluate` and `evaluate` with real models."""

import json

import pytest
from support.commands import assert_refused
from support.evaluation import SOURCES, TARGETS, save_peer, write_files
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
from typer.testing import CliRunner

from modeling_xlm_swcm.cli import main
from modeling_xlm_swcm.conversion import ConversionError
from modeling_xlm_swcm.evaluation import evaluate
from modeling_xlm_swcm.evaluation.run import name_models
from modeling_xlm_swcm.evaluation.systems import open_system


def run(*words):
    return CliRunner().invoke(main, ["evaluate", *map(str, words)])


def test_it_generates_what_generate_generates(converted, table):
    report = evaluate([str(converted)], str(table), ["bo"], "zh", num_beams=2, max_length=8, batch_tokens=20)
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(converted), AutoTokenizer.from_pretrained(converted)
    expected = []
    for text in SOURCES:
        inputs = tokenizer(text, src_lang="zh", return_tensors="pt")
        options = {"forced_bos_token_id": tokenizer.get_lang_id("bo"), "num_beams": 2, "max_new_tokens": 8}
        (ids,) = model.generate(**inputs, **options)
        expected.append((tokenizer.decode(ids, skip_special_tokens=True).strip(), tokenizer.eos_token_id in ids[1:]))
    outputs = report.directions["zh-bo"].models[converted.name].outputs
    assert outputs.texts == [text for text, _ in expected]
    assert outputs.is_cut == [not is_complete for _, is_complete in expected]


def test_long_sources_are_truncated_and_counted(converted, tmp_path):
    rows = [{"zh": SOURCES[0] * 20, "bo": TARGETS[0]}, {"zh": SOURCES[0], "bo": TARGETS[0]}]
    write_files(tmp_path, {"long.jsonl": rows})
    report = evaluate([str(converted)], str(tmp_path / "long.jsonl"), ["bo"], "zh", num_beams=1, max_length=4)
    assert report.directions["zh-bo"].models["model"].count_faults()["truncated_source"] == 1


def test_a_peer_stands_beside_the_model_with_its_own_codes(converted, peer_folder, table, tmp_path):
    output = tmp_path / "report"
    options = ["--data", table, "--source", "zh", "--target", "bo", "--num-beams", 1, "--max-length", 6]
    result = run(converted, peer_folder, *options, "--output", output)
    assert result.exit_code == 0, result.output
    assert "zh-bo  model" in result.stdout and "zh-bo  nllb" in result.stdout
    report = json.loads((output / "results.json").read_text(encoding="utf-8"))
    assert [*report["models"].values()] == [str(converted), str(peer_folder)]
    assert report["directions"]["zh-bo"]["models"]["nllb"]["scores"]["chrf++"] >= 0


def test_a_peer_gets_the_tokens_of_its_languages(peer_folder, tmp_path):
    codes = {peer_folder: ("zho_Hans", "bod_Tibt"), save_peer(tmp_path / "mbart", "mbart"): ("zh_CN", "kk_KZ")}
    for folder, (source, target) in codes.items():
        system = open_system(str(folder), {})
        assert (system.find_language("zh"), system.find_language({"kk_KZ": "kk"}.get(target, "bo"))) == (
            source,
            target,
        )
        (ids,), first = system.encode(["书"], source, target)
        assert system.tokenizer.convert_ids_to_tokens([*ids, first]) == [source, "▁", "书", "</s>", target]


def test_a_peer_without_language_codes_takes_any_language(table, tmp_path):
    folder = save_peer(tmp_path / "bart", "bart")
    assert open_system(str(folder), {}).languages == []
    report = evaluate(str(folder), str(table), "bo", "zh", num_beams=1, max_length=4)
    assert report.directions["zh-bo"].models["bart"].count_faults()["unk"] == 0


def test_titles_have_no_source(converted, tmp_path):
    write_files(tmp_path, {"titles.jsonl": [{"text": TARGETS[0], "title": TARGETS[1]}]})
    result = run(converted, "--data", tmp_path / "titles.jsonl", "--target", "bo", "--num-beams", 1, "--max-length", 4)
    assert result.exit_code == 0, result.output
    assert "rougeL" in result.stdout


def test_record_needs_a_local_model_and_writes_its_metrics(folder, peer_folder, table):
    options = ["--data", table, "--source", "zh", "--target", "bo", "--num-beams", 1, "--max-length", 4, "--record"]
    assert_refused(run(peer_folder, *options), "--record needs a local folder")
    assert_refused(
        run(folder, *options, "--max-samples", 1), "--record needs the scores of all texts, but --max-samples"
    )
    result = run(folder, *options)
    assert result.exit_code == 0, result.output
    metrics = json.loads((folder / "metrics.json").read_text())
    assert set(metrics["results"]) == {"chrf++", "bleu", "rougeL_f"} and metrics["dataset"] == "test.tsv"


class TestRefusals:
    """Each comes before a weight is read."""

    @pytest.fixture(autouse=True)
    def forbid_weights(self, monkeypatch):
        def fail(*args, **kwargs):
            raise AssertionError("weights were loaded")

        monkeypatch.setattr("modeling_xlm_swcm.evaluation.systems.load_model", fail)

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["--target", "ug"], "does not know the language ug (known: zh, kk-Arab, bo)"),
            (["--target", "bo", "--codes", "bo"], '--codes cannot be "bo"'),
            (["--target", "bo,ug"], '--target cannot be "bo,ug". Write the codes with spaces between them: bo ug.'),
            (["--target", "bo", "--codes", "ug=bo"], "--codes ug=bo has no effect. ug is neither --source nor"),
            (["--target", "bo", "--codes", "zh=zho"], "--codes zh=zho has no effect. Neither the data nor a model"),
            (["--target", "zh"], "--target contains the source language zh"),
            (["--target", "bo", "--num-beams", "0"], "--num-beams must be between 1 and 1024 (got 0)"),
            (["--target", "bo", "--max-samples", "0"], "--max-samples must be between 1"),
            (["--target", "kk-Arab"], "has no text in kk-Arab"),
            (["--target", "bo", "--output", "/dev/null/x"], "--output cannot write"),
        ],
    )
    def test_arguments(self, converted, table, words, message):
        assert_refused(run(converted, "--data", table, "--source", "zh", *words), message)

    def test_models(self, converted, encoder_folder, table, tmp_path):
        options = ["--data", table, "--source", "zh", "--target", "bo"]
        for again in (converted, f"{converted}/"):
            assert_refused(run(converted, again, *options), f"{converted} and {again} are the same model.")
        assert_refused(run(encoder_folder, *options), "not an encoder-decoder")
        (tmp_path / "config.json").write_text('{"model_type": "xlm_swcm_exported"}')
        assert_refused(run(tmp_path, *options), "is an exported model, not a checkpoint. Pass the folder from")
        assert_refused(run(tmp_path / "missing", *options), "does not exist")

    def test_a_package_that_is_missing_is_named(self, converted, table, monkeypatch):
        import sys

        monkeypatch.delitem(sys.modules, "modeling_xlm_swcm.evaluation.run")
        monkeypatch.setitem(sys.modules, "sacrebleu.significance", None)
        monkeypatch.delitem(sys.modules, "modeling_xlm_swcm.evaluation.scoring")
        monkeypatch.delitem(sys.modules, "modeling_xlm_swcm.evaluation.report")
        result = run(converted, "--data", table, "--source", "zh", "--target", "bo")
        assert_refused(result, "The evaluation needs the package sacrebleu.significance", "extra train")


def test_equal_names_become_the_ends_of_the_paths_that_differ(converted, folder, table):
    report = evaluate([str(converted), str(folder)], str(table), ["bo"], "zh", num_beams=1, max_length=4)
    assert [*report.sources] == ["/".join(path.parts[-2:]) for path in (converted, folder)]
    assert name_models(["runs/a/final", "runs/b/final", "final"]) == ["a/final", "b/final", "final"]
    assert name_models(["one/m", "m", "two/other"]) == ["one/m", "m", "other"]


def test_square_brackets_in_a_path_are_no_markup(folder, table):
    path = folder.with_name("[a][") / "x]b"
    path.parent.mkdir()
    folder.rename(path)
    result = run(path, "--data", table, "--source", "zh", "--target", "bo", "--num-beams", 1, "--max-length", 4)
    assert result.exit_code == 0, result.output
    assert "x]b" in result.stdout


def test_one_model_and_one_language_need_no_list(converted, table):
    report = evaluate(converted, table, "bo", "zh", num_beams=1, max_length=4)
    assert [*report.directions] == ["zh-bo"]
    with pytest.raises(ConversionError, match="There is no model"):
        evaluate([], str(table), "bo", "zh")


def test_the_error_of_the_library_is_an_error_of_the_package(converted, table):
    with pytest.raises(ConversionError, match="`num_beams` must be between 1 and 1024"):
        evaluate([str(converted)], str(table), ["bo"], "zh", num_beams=2000)
