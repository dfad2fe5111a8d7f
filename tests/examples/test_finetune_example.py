"""Fine-tuning and transfer, with their scripts: runs in several languages, and errors."""

import json
import shutil
import sys
from pathlib import Path

import finetune
import pytest
import torch
import transfer
import yaml
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from support.commands import run_process
from support.encoders import edit_config, edit_tensors
from support.folders import cut_short, load
from support.processes import run_in_two_processes
from transformers.utils import logging

from modeling_xlm_swcm import XLMSWCMTokenizer
from modeling_xlm_swcm.training import finetuning
from modeling_xlm_swcm.training.arguments import ModelArguments, TrainingArguments, parse_arguments
from modeling_xlm_swcm.training.examples import Pair
from modeling_xlm_swcm.training.finetuning_data import FinetuneDataArguments
from modeling_xlm_swcm.training.rows import DataError
from modeling_xlm_swcm.training.transfer import choose_pairs


EXAMPLES = Path(__file__).parents[2] / "examples"
ROWS = [
    {"zh": "我们", "kk": "жел жоқ", "bo": "ང་ཚོ"},
    {"zh": "河边没有风", "kk": "өзен", "bo": "ཁྱེད་རང"},
    {"zh": "早上去河边", "kk": "бардық", "bo": "ཞོགས་པ"},
]
IN_TWO_PROCESSES = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
QUICK = {
    "max_source_length": 30,
    "max_target_length": 20,
    "num_beams": 1,
    "learning_rate": 3e-3,
    "per_device_train_batch_size": 8,
    "lr_scheduler_type": "constant",
    "bf16": False,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "license": "mit",
}


def write_table(path: Path, rows: list[dict]) -> str:
    lines = ["\t".join(rows[0]), *("\t".join(row.values()) for row in rows)]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return str(path)


def write_jsonl(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def flags(options: dict) -> list[str]:
    """Return options as words of a command line."""
    words = []
    for name, value in options.items():
        words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return words


def run_finetune(words: list[str]):
    sys.argv = ["finetune.py", *words]
    finetune.main()
    assert torch.distributed.get_world_size() == 2


@pytest.fixture
def main(monkeypatch):
    """Return a function that runs a script in this process and returns its error message, or None."""

    def run(script, *words: str, **options) -> str | None:
        monkeypatch.setattr(sys, "argv", ["script", *words, *flags(options)])
        try:
            script.main()
        except SystemExit as error:
            return error.code
        return None

    return run


@pytest.fixture
def translation(learner_folder, tmp_path) -> dict:
    """Return the options of a run that learns `ROWS` by heart."""
    table = write_table(tmp_path / "rows.tsv", ROWS)
    languages = {"task": "translation", "source_lang": "zh", "target_lang": ["kk", "bo"]}
    steps = {"do_train": True, "do_predict": True, "predict_with_generate": True, "max_steps": 90}
    folders = {"model_name_or_path": str(learner_folder), "output_dir": str(tmp_path / "output")}
    return QUICK | languages | steps | folders | {"train_file": table, "test_file": table}


class TestRuns:
    def test_every_text_is_written_in_its_own_language_and_scored_for_it(self, main, translation, tmp_path, capsys):
        # The rows of the test set have another order, so that a batch has both languages.
        translation["test_file"] = write_table(tmp_path / "test.tsv", [ROWS[2], ROWS[0], ROWS[1]])
        # Training batches of similar length must not change the order of the test set.
        assert main(finetune, **translation, train_sampling_strategy="group_by_length") is None
        output = tmp_path / "output"
        written = (output / "generated_predictions.txt").read_text(encoding="utf-8").splitlines()
        assert written == [ROWS[number][code] for number in (2, 0, 1) for code in ("kk", "bo")]
        scores = json.loads((output / "predict_results.json").read_text())
        assert scores.keys() == {"all", "zh-kk", "zh-bo"}
        assert scores["zh-bo"]["chrf++"] == scores["all"]["bleu"] == 100 and "bleu_signature" in scores["all"]
        metrics = json.loads((output / "metrics.json").read_text())
        assert metrics["results"]["chrf++"] == {"all": 100, "zh-kk": 100, "zh-bo": 100}
        assert metrics["training"]["steps"] == 90 and metrics["dataset"] == "test.tsv"
        printed = capsys.readouterr().out
        assert printed.endswith(f"Written to {output}.\n")
        assert "zh-bo" in printed and "bleu_signature: nrefs:1|case:mixed|eff:yes|tok:uax29-nfkc" in printed
        card = (output / "README.md").read_text()
        assert "zh-bo" in card and "0.003" in card
        shares = {name: value for name, value in metrics["training"].items() if name.startswith("unk_share")}
        texts = ("sources in zh", "targets in bo", "targets in kk")
        assert shares == {f"unk_share ({kind})": 0 for kind in texts} and "| unk_share (targets in bo) | 0.0 |" in card
        load(output)

    def test_without_training_a_model_is_scored_and_not_written(self, main, translation, tmp_path):
        assert (
            main(
                finetune,
                **translation | {"do_train": False, "do_eval": True, "validation_file": translation["test_file"]},
            )
            is None
        )
        files = {path.name for path in (tmp_path / "output").iterdir()}
        assert files == {"eval_results.json", "predict_results.json", "generated_predictions.txt"}

    def test_the_card_names_the_data_that_was_scored_and_arguments_stay(self, translation, tmp_path):
        options = translation | {"do_eval": True, "do_predict": False, "max_steps": 1}
        options |= {"validation_file": write_table(tmp_path / "dev.tsv", ROWS)}
        classes = ModelArguments, FinetuneDataArguments, TrainingArguments
        arguments = parse_arguments(*classes, argv=flags(options))
        for name in ("first", "second"):
            arguments[2].output_dir = str(tmp_path / name)
            finetuning.finetune(*arguments)
            assert json.loads((tmp_path / name / "metrics.json").read_text())["dataset"] == "dev.tsv"

    @pytest.mark.slow
    def test_two_processes_write_what_one_writes(self, main, translation, tmp_path):
        # The texts do not fill the batches of two and the processes evenly.
        translation["test_file"] = write_table(tmp_path / "test.tsv", ROWS)
        options = translation | {"do_train": False, "target_lang": ["kk", "bo"], "per_device_eval_batch_size": 2}
        options |= {"max_predict_samples": 3, "both_directions": True, "max_target_length": 6}
        assert main(finetune, **options) is None
        again = options | {"output_dir": str(tmp_path / "again"), "use_cpu": True}
        run = run_process(sys.executable, *IN_TWO_PROCESSES, EXAMPLES / "finetune.py", *flags(again))
        assert run.returncode == 0, run.stderr
        for name in ("generated_predictions.txt", "predict_results.json"):
            assert (tmp_path / "again" / name).read_text() == (tmp_path / "output" / name).read_text()

    def test_two_processes_learn_what_one_learns_and_no_row_twice(self, main, translation, tmp_path):
        # Twelve rows in batches of ten: the second batch has two rows for the first process, and none for the second.
        model = Path(shutil.copytree(translation["model_name_or_path"], tmp_path / "still"))
        edit_config(model, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        options = translation | {"model_name_or_path": str(model), "do_predict": False, "both_directions": True}
        options |= {"max_steps": 4, "save_strategy": "steps", "save_steps": 4, "logging_steps": 1}
        assert main(finetune, **options | {"per_device_train_batch_size": 10}) is None
        again = options | {"output_dir": str(tmp_path / "again"), "per_device_train_batch_size": 5, "use_cpu": True}
        run_in_two_processes(tmp_path, run_finetune, flags(again))
        one, two = (
            [entry["loss"] for entry in json.loads(path.read_text())["log_history"] if "loss" in entry]
            for path in (tmp_path / name / "checkpoint-4" / "trainer_state.json" for name in ("output", "again"))
        )
        assert len(one) == 4 and two == pytest.approx(one, rel=1e-4)

    def test_an_evaluation_without_texts_leaves_its_loss(self, main, translation, tmp_path, capsys):
        options = {"do_train": False, "do_predict": False, "predict_with_generate": False, "do_eval": True}
        options |= {"validation_file": translation["test_file"]}
        assert main(finetune, **translation | options) is None
        (scores,) = json.loads((tmp_path / "output" / "eval_results.json").read_text()).values()
        assert list(scores) == ["loss"] and f"{scores['loss']:.2f}" in capsys.readouterr().out

    def test_a_settings_file_is_the_same_as_flags(self, main, translation, tmp_path):
        translation |= {"max_steps": 3, "do_predict": False}
        assert main(finetune, **translation) is None
        settings = translation | {"output_dir": str(tmp_path / "again")}
        (tmp_path / "settings.yaml").write_text(yaml.safe_dump(settings))
        assert main(finetune, str(tmp_path / "settings.yaml")) is None
        flagged, settled = (load(tmp_path / name).state_dict() for name in ("output", "again"))
        assert all(torch.equal(flagged[name], settled[name]) for name in flagged)

    def test_a_run_goes_on_from_its_last_checkpoint(self, main, translation, tmp_path, caplog, monkeypatch):
        saving = translation | {"do_predict": False, "save_strategy": "steps", "save_steps": 2, "max_steps": 4}
        whole = saving | {"max_steps": 6, "output_dir": str(tmp_path / "whole")}
        monkeypatch.setattr(logging.get_logger("modeling_xlm_swcm"), "propagate", True)
        assert main(finetune, **saving, resume_from_checkpoint="last") is None
        assert f"{tmp_path / 'output'} has no checkpoint. The training starts from the beginning." in caplog.messages
        assert "resume_from_checkpoint" in main(finetune, **saving)
        assert main(finetune, **saving | {"max_steps": 6, "resume_from_checkpoint": "last"}) is None
        assert main(finetune, **whole) is None
        resumed, uninterrupted = (load(tmp_path / name).state_dict() for name in ("output", "whole"))
        assert all(torch.equal(resumed[name], uninterrupted[name]) for name in resumed)

    @pytest.mark.parametrize("option", ["lora", "freeze_encoder"])
    def test_adapters_are_merged_and_a_frozen_encoder_stays(self, main, translation, learner_folder, tmp_path, option):
        assert main(finetune, **translation | {option: True, "max_steps": 3}) is None
        before, after = load(learner_folder).state_dict(), load(tmp_path / "output").state_dict()
        changed = {name for name in before if not torch.equal(before[name], after[name])}
        assert any(".decoder.layers." in name for name in changed)
        assert not any(name.startswith("model.encoder.") for name in changed)
        assert not list((tmp_path / "output").glob("adapter*"))

    def test_reading_comprehension(self, main, learner_folder, tmp_path):
        rows = [{"question": "风？", "context": "河边没有风", "answers": {"text": ["没有"]}} for _ in range(2)]
        file = write_jsonl(tmp_path / "qa.jsonl", rows)
        options = QUICK | {"task": "question-answering", "source_lang": "zh", "max_steps": 30, "test_file": file}
        options |= {"model_name_or_path": str(learner_folder), "output_dir": str(tmp_path / "output")}
        words = ["--do_train", "--do_predict", "--predict_with_generate"]
        assert main(finetune, *words, **options, train_file=file) is None
        metrics = json.loads((tmp_path / "output" / "metrics.json").read_text())
        assert metrics["results"]["exact_match"]["zh"] == metrics["results"]["token_f1"]["all"] == 100

    def test_a_model_that_is_not_whole_is_not_trained(self, main, translation, learner_folder, tmp_path):
        broken = translation | {"model_name_or_path": str(shutil.copytree(learner_folder, tmp_path / "broken"))}
        edit_tensors(tmp_path / "broken", lambda tensors: dict(list(tensors.items())[:-1]))
        assert "do not fit its config: missing keys, " in main(finetune, **broken)
        shutil.copy(learner_folder / "model.safetensors", tmp_path / "broken")
        tokenizer = XLMSWCMTokenizer.from_pretrained(learner_folder)
        tokenizer.add_tokens(["风车"])
        tokenizer.save_pretrained(tmp_path / "broken")
        assert "Use the tokenizer that belongs to the weights." in main(finetune, **broken)
        assert not (tmp_path / "output").exists()

    def test_a_model_is_not_written_over_by_its_training(self, main, translation, learner_folder, tmp_path):
        own = str(shutil.copytree(learner_folder, tmp_path / "own"))
        before = (tmp_path / "own" / "model.safetensors").read_bytes()
        error = main(finetune, **translation | {"model_name_or_path": own, "output_dir": own})
        assert error == f"error: --output_dir {own} is the folder of the model to start from. Choose another folder."
        assert (tmp_path / "own" / "model.safetensors").read_bytes() == before

    @pytest.mark.parametrize(("stored", "saved"), [("float32", None), ("bfloat16", None), ("float16", "float32")])
    def test_the_saved_model_has_the_dtype_that_was_asked_for(self, main, translation, tmp_path, stored, saved):
        model = tmp_path / "stored"
        load(translation["model_name_or_path"]).to(getattr(torch, stored)).save_pretrained(model)
        XLMSWCMTokenizer.from_pretrained(translation["model_name_or_path"]).save_pretrained(model)
        options = {"model_name_or_path": str(model), "max_steps": 1, "bf16_full_eval": True}
        assert main(finetune, **translation | options | ({"save_dtype": saved} if saved else {})) is None
        tensors = load_file(tmp_path / "output" / "model.safetensors")
        assert {tensor.dtype for tensor in tensors.values()} == {getattr(torch, saved or stored)}
        training = json.loads((tmp_path / "output" / "metrics.json").read_text())["training"]
        assert (training["precision"], training["saved_dtype"]) == ("float32", saved or stored)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"do_train": False, "do_predict": False}, "There is nothing to do. Pass --do_train"),
            ({"predict_with_generate": False}, "--do_predict needs --predict_with_generate."),
            (
                {"target_lang": ["ug"]},
                'The model has no language tag for "ug". Known languages: zh, kk, bo. Use one of them, or convert',
            ),
            ({"dataset_config_name": "zh"}, "--dataset_config_name needs --dataset_name. Add it."),
            ({"lora_rank": 8}, "--lora_rank needs --lora. Add --lora."),
            (
                {"load_best_model_at_end": True},
                "--load_best_model_at_end needs an evaluation during the training. Pass --eval_strategy steps",
            ),
            ({"text_column": "zh"}, "--text_column is for summarization only. Remove it."),
            ({"max_source_length": 50}, "--max_source_length must be at most 38 for this model (got 50)."),
            ({"test_file": "nowhere.tsv"}, "nowhere.tsv does not exist. Check the path."),
            ({"do_eval": True}, "There is no validation data. Pass --validation_file"),
            (
                {"task": "summarization"},
                "--target_lang takes one language for summarization (got kk bo). "
                "Pass one code, or pass --lang_column instead.",
            ),
            (
                {"task": "summarization", "target_lang": ["kk"], "both_directions": True},
                "--both_directions is for translation only.",
            ),
            (
                {"lang_column": "lang"},
                "Translation does not use --lang_column. Pass --source_lang and --target_lang instead.",
            ),
            ({"max_train_samples": -1}, "--max_train_samples must be at least 1 (got -1)."),
            ({"num_beams": 0}, "--num_beams must be between 1 and 1024"),
            ({"output_dir": ""}, "--output_dir is empty. Name a folder."),
            ({"generation_num_beams": 1}, "--generation_num_beams has no effect. Use --num_beams instead."),
            ({"generation_max_length": 9}, "--generation_max_length has no effect. Use --max_target_length instead."),
            (
                {"batch_eval_metrics": True},
                "--batch_eval_metrics does not work with --predict_with_generate. Remove it.",
            ),
            (
                {"eval_do_concat_batches": False},
                "--eval_do_concat_batches false does not work with --predict_with_generate. Remove it.",
            ),
            (
                {"prediction_loss_only": True},
                "--prediction_loss_only does not work with --predict_with_generate. Remove it.",
            ),
            ({"task": "summarization", "target_lang": ["kk"]}, 'Rename a column to "text", or change --text_column.'),
            (
                {"target_lang": ["kk,bo", "zh"]},
                '--target_lang cannot be "kk,bo". Write the codes with spaces between them: kk bo.',
            ),
            (
                {"train_file": ["a.tsv", "b.tsv"]},
                "--train_file takes one value (got a.tsv b.tsv). Pass one file, or a pattern in quotes",
            ),
            ({"hub_strategy": "end"}, "--hub_strategy has no effect, because the model is uploaded once, at the end."),
            (
                {"source_lang": "kk", "target_lang": ["bo", "kk"]},
                "--target_lang contains the source language kk. Remove it.",
            ),
            ({"model_name_or_path": "./nowhere"}, "The folder ./nowhere does not exist"),
            ({"push_to_hub": True}, "--hub_model_id"),
            (
                {"hub_token": "hf_secret"},
                "--hub_token shows the token to other users.",
            ),
            ({"max_source_length": 4, "skip_bad_rows": True}, "The train data has no usable row."),
        ],
    )
    def test_errors_are_one_sentence_before_any_training(self, main, translation, tmp_path, options, message):
        error = main(finetune, **translation | options)
        assert error.startswith("error: ") and message in error and "\n" not in error
        assert not (tmp_path / "output").exists()

    @pytest.mark.parametrize(
        ("file", "message"),
        [
            (
                "model.safetensors",
                "Cannot read weights from {path}. The file is cut short or damaged. Download it again, or save it "
                "again. (Error while deserializing header: incomplete metadata, file not fully covered)",
            ),
            ("tokenizer.json", "{path} is not valid JSON. Correct the file, or download it again."),
        ],
    )
    def test_a_damaged_model_is_named(self, main, translation, learner_folder, tmp_path, file, message):
        damaged = shutil.copytree(learner_folder, tmp_path / "model")
        cut_short(damaged / file)
        error = main(finetune, **translation | {"model_name_or_path": str(damaged)})
        assert error == f"error: {message.format(path=damaged / file)}"

    def test_the_model_is_pushed_once_with_its_card(self, hub, client, translation):
        options = translation | {"push_to_hub": True, "hub_model_id": "someone/model", "max_steps": 2}
        script = str(EXAMPLES / "finetune.py")
        words = [script, *flags(options)]
        outcome = client.run(
            f"import runpy, sys; sys.argv = {words!r}; runpy.run_path(sys.argv[0], run_name='__main__')"
        )
        assert outcome["error"] is None
        assert "Pushed: " in outcome["printed"]
        files = hub.repositories["someone/model"].files
        assert {"README.md", "model.safetensors", "tokenizer.json", "metrics.json"} <= files.keys()
        assert not any(name.startswith("checkpoint") for name in files)


class TestTransfer:
    @given(st.lists(st.sampled_from(["zh", "kk", "bo"]), max_size=30), st.integers(0, 5), st.integers(0, 3))
    def test_samples_are_nested_and_of_the_asked_number(self, languages, samples, seed):
        pairs = [Pair(f"x:{n}", "s", "t", code, code) for n, code in enumerate(["zh", *languages])]
        try:
            chosen = choose_pairs(pairs, "summarization", "zh", samples, seed)
        except DataError:
            assert any(0 < languages.count(code) < samples for code in ("kk", "bo"))
            return
        counts = {code: sum(pair.tgt_lang == code for pair in chosen) for code in languages}
        assert counts == {code: languages.count("zh") + 1 if code == "zh" else samples for code in counts}
        assert [pair for pair in chosen if pair.tgt_lang == "zh"] == [pair for pair in pairs if pair.tgt_lang == "zh"]
        fewer = choose_pairs(pairs, "summarization", "zh", max(samples - 1, 0), seed)
        assert set(fewer) <= set(chosen) <= set(pairs)

    def test_a_run_for_each_number_of_samples_and_a_score_for_each_language(self, main, learner_folder, tmp_path):
        rows = [{"text": row[code], "summary": row[code], "lang": code} for row in ROWS for code in ("zh", "kk", "bo")]
        file = write_jsonl(tmp_path / "rows.jsonl", rows)
        options = QUICK | {"task": "summarization", "lang_column": "lang", "high_resource": "zh", "max_steps": 4}
        options |= {"model_name_or_path": str(learner_folder), "output_dir": str(tmp_path / "output")}
        options |= {"train_file": file, "test_file": file, "samples": [0, 2]}
        assert main(transfer, **options) is None
        results = json.loads((tmp_path / "output" / "transfer.json").read_text())
        assert {samples: list(row) for samples, row in results["scores"].items()} == dict.fromkeys(
            "02", ["zh", "kk", "bo"]
        )
        assert results["metric"] == "rougeL_f"
        lines = (tmp_path / "output" / "transfer.md").read_text().splitlines()
        assert lines[0] == "| rougeL_f | zh | kk | bo |" and lines[3].startswith("| zh + 2 | ")
        assert (tmp_path / "output" / "transfer.png").read_bytes().startswith(b"\x89PNG")
        trained = [load(tmp_path / "output" / f"zh+{samples}").state_dict() for samples in (0, 2)]
        assert any(not torch.equal(trained[0][name], trained[1][name]) for name in trained[0])
        # The second call trains only the missing model. It keeps the scores of the other models.
        before = [path.stat().st_mtime_ns for path in sorted((tmp_path / "output").glob("*/model.safetensors"))]
        assert main(transfer, **options | {"samples": [1]}) is None
        again = json.loads((tmp_path / "output" / "transfer.json").read_text())["scores"]
        assert list(again) == ["0", "1", "2"] and {key: again[key] for key in "02"} == results["scores"]
        kept = [tmp_path / "output" / f"zh+{samples}" / "model.safetensors" for samples in (0, 2)]
        assert [path.stat().st_mtime_ns for path in kept] == before
        error = main(transfer, **options | {"max_steps": 5})
        assert error.startswith(f"error: {tmp_path}/output/zh+") and "a run with another --max_steps (4)." in error

    def test_samples_hold_only_pairs_that_can_be_used(self, main, learner_folder, tmp_path):
        rows = [{"text": row[code], "summary": row[code], "lang": code} for row in ROWS for code in ("zh", "kk")]
        long = [{"text": "жел", "summary": "жел жоқ еді " * 9, "lang": "kk"}] * 9
        file, test = write_jsonl(tmp_path / "rows.jsonl", long + rows), write_jsonl(tmp_path / "test.jsonl", rows)
        options = QUICK | {"task": "summarization", "lang_column": "lang", "high_resource": "zh", "max_steps": 1}
        options |= {"model_name_or_path": str(learner_folder), "output_dir": str(tmp_path / "output")}
        options |= {"train_file": file, "test_file": test, "samples": [3], "skip_bad_rows": True}
        assert main(transfer, **options) is None
        training = json.loads((tmp_path / "output" / "zh+3" / "metrics.json").read_text())["training"]
        assert training["examples"] == 6
        assert "has 3 examples in kk, fewer than --samples 4" in main(transfer, **options | {"samples": [4]})

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"samples": [0, -1]}, "--samples must not be negative (got -1)."),
            (
                {"high_resource": "ug"},
                "The training data has no examples in ug. Set --high_resource to one of: bo, kk, zh.",
            ),
            ({"samples": [0, 9]}, "The training data has 3 examples in bo, fewer than --samples 9."),
            ({"metric": "bleu"}, "--metric must be one of rougeL_f, rouge1_f, rouge2_f, chrf++ (got bleu)."),
            ({"push_to_hub": True}, "xlm-swcm push"),
        ],
    )
    def test_errors_come_before_the_first_run(self, main, learner_folder, tmp_path, options, message):
        rows = [{"text": row[code], "summary": row[code], "lang": code} for row in ROWS for code in ("zh", "kk", "bo")]
        file = write_jsonl(tmp_path / "rows.jsonl", rows)
        options = {"high_resource": "zh", "samples": [0], "train_file": file, "test_file": file} | options
        options |= QUICK | {"task": "summarization", "lang_column": "lang", "output_dir": str(tmp_path / "output")}
        error = main(transfer, **options, model_name_or_path=str(learner_folder))
        assert error.startswith("error: ") and message in error
        assert not (tmp_path / "output").exists()
