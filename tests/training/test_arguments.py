"""Arguments of the training scripts: settings files, command lines, presets and errors."""

import os
from dataclasses import fields
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from modeling_xlm_swcm.training.arguments import (
    COUNTS,
    INTERVALS,
    ModelArguments,
    TrainingArguments,
    has_fast_bf16,
    parse_arguments,
)
from modeling_xlm_swcm.training.finetuning_data import FinetuneDataArguments
from modeling_xlm_swcm.training.generation import GenerateArguments
from modeling_xlm_swcm.training.mixture import load_corpora
from modeling_xlm_swcm.training.pretraining import PretrainDataArguments
from modeling_xlm_swcm.training.rows import DataError
from modeling_xlm_swcm.training.transfer import TransferArguments


EXAMPLES = Path(__file__).parents[2] / "examples"


def parse(*argv) -> tuple[ModelArguments, TrainingArguments]:
    return parse_arguments(ModelArguments, TrainingArguments, argv=list(map(str, argv)))


def test_a_file_gives_defaults_and_the_command_line_wins(tmp_path):
    path = tmp_path / "preset.yaml"
    path.write_text("learning_rate: 1e-4\nmax_steps: 7\nlora: true\nmodel_name_or_path: m\nuse_cpu: true\n")
    model, training = parse(path, "--max_steps", 9, "--output_dir", tmp_path)
    assert (model.model_name_or_path, model.lora) == ("m", True)
    assert (training.learning_rate, training.max_steps, training.output_dir) == (1e-4, 9, str(tmp_path))


def test_json_and_dashes(tmp_path):
    path = tmp_path / "preset.json"
    path.write_text('{"scheduled_sampling": 0.1, "use_cpu": true}')
    model, training = parse(path, "--model-name-or-path", "m", "--freeze-encoder", "--output_dir", tmp_path)
    assert model.freeze_encoder and training.scheduled_sampling == 0.1
    # YAML reads neither tabs nor pairs of escaped characters.
    path.write_text('{\n\t"run_name": "\\ud83d\\ude00",\n\t"use_cpu": true\n}')
    assert parse(path, "--model-name-or-path", "m", "--output_dir", tmp_path)[1].run_name == "😀"
    path.write_text('{"max_steps": 1, "max_steps": 2}')
    with pytest.raises(SystemExit, match="max_steps is given twice"):
        parse(path, "--model-name-or-path", "m", "--output_dir", tmp_path)


def test_the_help_names_each_default_once(capsys):
    with pytest.raises(SystemExit, match="0"):
        parse("--help")
    printed = " ".join(capsys.readouterr().out.split())
    assert "[SETTINGS.yaml|SETTINGS.json] [OPTIONS]" in printed
    for sentence in (
        "Model to start from: a local folder or a Hub id. Required. --lora",
        "Rank of the LoRA adapters. Default: 16. --freeze_encoder",
        "Licence for the model card, for example mit. Default: the licence in the conversion report. --",
        "some collators need extra columns, for example `epoch`. Default: False. --",
        "--no_lora_merge, --no-lora-merge The same as --lora_merge false. --",
        "--lora [true|false] Train",
        "or, without a GPU, if the CPU does. With --fp16: false. --",
        "Default: true if there is no CUDA GPU. --",
        "the scores and the checkpoints. Default: trainer_output. --",
        "last: the last checkpoint in --output_dir. Default: a new run. --",
        "Upload the model to the Hub once, at the end. Needs --hub_model_id. Default: False. --",
    ):
        assert sentence in printed
    assert "default: None" not in printed and "Default: None" not in printed
    assert "--auto_find_batch_size" not in printed and "--local_rank" not in printed


@pytest.mark.parametrize("data", [FinetuneDataArguments, PretrainDataArguments, TransferArguments])
def test_options_that_a_script_does_not_support_are_refused_and_not_in_its_help(data, tmp_path, capsys):
    required = {"task": "summarization", "source_lang": "zh", "data": "corpora.yaml", "high_resource": "zh"}
    names = {option.name for option in fields(data)}
    words = [f"--{name}={value}" for name, value in required.items() if name in names]
    words += ["--model_name_or_path=m", f"--output_dir={tmp_path}", "--use_cpu"]

    def parse_more(*more):
        return parse_arguments(ModelArguments, data, TrainingArguments, argv=[*words, *more])

    with pytest.raises(SystemExit, match="0"):
        parse_more("--help")
    printed = capsys.readouterr().out
    types = {option.name: option.type for option in fields(TrainingArguments)}
    for name, message in data.unsupported.items():
        assert f"--{name} " not in printed
        value = {"hub_strategy": "end"}.get(name, "true" if "bool" in str(types[name]) else "1")
        if message:
            with pytest.raises(SystemExit) as error:
                parse_more(f"--{name}", value)
            assert error.value.code == f"error: {message}"
        else:
            parse_more(f"--{name}", value)
    assert parse_more("--hub_always_push", "false")[-1].hub_strategy == "every_save"


@pytest.mark.parametrize("fast", [True, False])
def test_bfloat16_where_there_is_one_and_nobody_says_otherwise(tmp_path, monkeypatch, fast):
    monkeypatch.setattr("modeling_xlm_swcm.training.arguments.has_fast_bf16", lambda: fast)
    command = ["--model_name_or_path", "m", "--output_dir", tmp_path, "--use_cpu"]
    assert parse(*command)[1].bf16 is fast
    assert parse(*command, "--bf16", "false")[1].bf16 is False


@pytest.mark.parametrize(("major", "fast"), [(7, False), (8, True)])
def test_bfloat16_that_a_gpu_emulates_is_not_fast(monkeypatch, major, fast):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.current_device", lambda: 0)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda device: SimpleNamespace(major=major))
    monkeypatch.setattr("torch.cuda._check_bf16_tensor_supported", lambda device: True)
    assert has_fast_bf16() is fast


@pytest.mark.timeout(20)
def test_a_queue_is_no_file_of_settings(tmp_path):
    os.mkfifo(tmp_path / "preset.yaml")
    for read in (parse, load_corpora):
        with pytest.raises((SystemExit, DataError), match="preset.yaml is not a regular file. Pass a file."):
            read(str(tmp_path / "preset.yaml"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist. Check the path."),
        ("[", "cannot be read: "),
        ("3", "must contain one setting per line (example: learning_rate: 0.0001)."),
        ("rate: 3", "has the unknown setting rate. Run with --help to list the options."),
        ("no: 3", "has the unknown setting False. Run with --help to list the options."),
        ("report_to: [no, off]", "sets report_to to [False, False]. Without quotes, YAML does not read no, yes,"),
        ("eval_strategy: no", "sets eval_strategy to False. Without quotes, YAML does not read no, yes, on, off"),
        ("seed: 3\nseed: 4", "cannot be read: seed is given twice"),
        ("max_stepz: 3", "has the unknown setting max_stepz. Did you mean max_steps?"),
    ],
)
def test_a_bad_file_is_refused(tmp_path, capsys, content, message):
    path = tmp_path / "preset.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SystemExit) as error:
        parse(path)
    assert error.value.code.startswith(f"error: {path} {message}") and "\n" not in error.value.code
    assert capsys.readouterr().err == ""


def test_a_json_file_can_be_the_last_value_of_an_option(tmp_path):
    words = ["--use_cpu", "true", "--label_names", "labels", "more.json"]
    assert parse("--model_name", "m", "--output-dir", tmp_path, *words)[1].label_names == ["labels", "more.json"]


def test_settings_after_the_options_are_named_before_missing_options(tmp_path):
    with pytest.raises(SystemExit) as error:
        parse("--output-dir", tmp_path, "settings.yaml")
    assert error.value.code.startswith("error: Unexpected argument settings.yaml. Write the file of settings before")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--max_stepz", 3], "Unknown option --max_stepz. Did you mean --max_steps?"),
        (["--tokenizer_name", "x"], "Unknown option --tokenizer_name. Run with --help to list the options."),
        (["--fire"], "Unknown option --fire. Run with --help to list the options."),
        (["settings.yaml"], "Unexpected argument settings.yaml. Write the file of settings before all options."),
        (["--license=mit", "more"], "Unexpected argument more. Run with --help to list the options."),
        (["--license", "mit", "bsd"], "--license takes one value (got mit bsd). Pass one value."),
    ],
)
def test_words_that_are_no_options_are_named(tmp_path, words, message):
    with pytest.raises(SystemExit) as error:
        parse("--model_name", "m", "--output-dir", tmp_path, "--use_cpu", "true", *words)
    assert error.value.code == f"error: {message}"


def test_a_file_is_read_like_a_command_line(tmp_path, capsys):
    path = tmp_path / "settings.yaml"
    path.write_text(
        "model_name_or_path: m\nreport_to: none\nbf16: null\nuse_cpu: yes\nlr_scheduler_kwargs: {a: 1}\n"
        "logging_nan_inf_filter: false\n"
    )
    _, training = parse(path, "--output_dir", tmp_path)
    assert (training.report_to, training.use_cpu, training.lr_scheduler_kwargs) == ([], True, {"a": 1})
    assert training.logging_nan_inf_filter is False
    path.write_text("max_steps: 1.5\n")
    with pytest.raises(SystemExit):
        parse(path, "--model_name_or_path", "m")
    assert capsys.readouterr().err == 'error: --max_steps cannot be "1.5". Use a whole number.\n'


@pytest.mark.parametrize("name", ["learning_rate", "weight_decay", "adam_epsilon", "max_grad_norm", "warmup_steps"])
@pytest.mark.parametrize("value", ["-1", "nan", "inf"])
def test_numbers_that_must_be_finite_are_checked(tmp_path, name, value):
    with pytest.raises(SystemExit) as error:
        parse("--model_name_or_path", "m", "--output_dir", tmp_path, f"--{name}", value)
    assert (
        error.value.code == f"error: --{name} must be at least 0 and finite (got {float(value)}). Use another number."
    )


@pytest.mark.parametrize("name", COUNTS)
def test_counts_are_checked(tmp_path, name):
    for value in (0, -1):
        with pytest.raises(
            ValueError, match=rf"^--{name} must be at least 1 \(got {value}\)\. Use a larger number\.$"
        ):
            TrainingArguments(str(tmp_path), use_cpu=True, **{name: value})


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf")])
@pytest.mark.parametrize("name", INTERVALS)
def test_intervals_are_checked(tmp_path, name, value):
    with pytest.raises(
        ValueError, match=rf"^--{name} must be above 0 and finite \(got {value}\)\. Use another number\.$"
    ):
        TrainingArguments(str(tmp_path), use_cpu=True, **{name: value})


@pytest.mark.parametrize(
    ("num_beams", "is_allowed"), [(0, False), (1, True), (1024, True), (1025, False), (10**6, False)]
)
def test_the_number_of_beams_has_a_limit(num_beams, is_allowed):
    options = {"task": "summarization", "source_lang": "zh", "num_beams": num_beams}
    for make in (
        partial(GenerateArguments, "m", "zh", "bo", num_beams=num_beams),
        partial(FinetuneDataArguments, **options),
    ):
        if is_allowed:
            assert make().num_beams == num_beams
            continue
        with pytest.raises(
            ValueError, match=rf"^--num_beams must be between 1 and 1024 \(got {num_beams}\)\. Use another number\.$"
        ):
            make()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--max_lenght", "3"], "--max_lenght"),
        (["--scheduled_sampling", "2"], "--scheduled_sampling must be between 0 and 1 (got 2.0)."),
        (["--lora_rank", "0"], "--lora_rank must be at least 1 (got 0)."),
        (["--learning_rate", "-1"], "--learning_rate must be at least 0 and finite (got -1.0)."),
        (["--max_steps", "0"], "--max_steps must be at least 1 (got 0). Leave it out to train whole epochs."),
        (["--per_device_train_batch_size", "0"], "--per_device_train_batch_size must be at least 1"),
        (["--adam_beta1", "1"], "--adam_beta1 must be at least 0 and below 1 (got 1.0)."),
        (["--label_smoothing_factor", "nan"], "--label_smoothing_factor must be at least 0 and below 1 (got nan)."),
        (["--data_seed", "-1"], "--data_seed must be between 0 and 4294967295 (got -1)."),
        (["--seed", 2**32], "--seed must be between 0 and 4294967295 (got 4294967296)."),
        (["--dataloader_num_workers", "1000"], "--dataloader_num_workers must be between 0 and 256 (got 1000)."),
        (["--generation_num_beams", 1025], "--generation_num_beams must be at most 1024 (got 1025)."),
        (["--per_device_eval_batch_size", 10**12], "--per_device_eval_batch_size must be at most 1048576"),
        (["--save_strategy", "best"], "--save_strategy best needs an evaluation during the training."),
        (
            ["--load_best_model_at_end", "--eval_strategy", "epoch"],
            "--load_best_model_at_end needs the same --save_strategy and --eval_strategy (got steps and epoch).",
        ),
        (["--auto_find_batch_size"], "Set --per_device_train_batch_size and --gradient_accumulation_steps instead."),
        (["--eval_on_start"], "--eval_on_start needs an evaluation during the training."),
        (["--lr_scheduler_kwargs", "{bad"], "error: {bad is not valid JSON: Expecting property name"),
        (["--fp16", "--bf16"], "--fp16 and --bf16 do not work together. Pass only one of them."),
        (["--accelerator_config", '{"a": 1}'], "unexpected keyword argument 'a'"),
        (["--fsdp", "nonsense"], "nonsense"),
        (["--report_to", "nobodys"], "--report_to nobodys is not available. Correct the name, or install"),
    ],
)
def test_impossible_arguments_are_one_sentence(tmp_path, words, message):
    with pytest.raises(SystemExit) as error:
        parse("--model_name_or_path", "m", "--output_dir", tmp_path, *words)
    assert error.value.code.startswith("error: ") and message in error.value.code


def test_float16_takes_the_place_of_bfloat16(tmp_path, monkeypatch):
    monkeypatch.setattr("modeling_xlm_swcm.training.arguments.has_fast_bf16", lambda: True)
    training = parse("--model_name_or_path", "m", "--output_dir", tmp_path, "--use_cpu", "--fp16")[1]
    assert training.fp16 and not training.bf16


@pytest.mark.parametrize("preset", ["paper", "one_gpu", "cpu_small"])
def test_presets_are_understood(preset, tmp_path):
    path = EXAMPLES / "presets" / f"{preset}.yaml"
    command = [str(path), "--model_name_or_path", "m", "--data", "d", "--output_dir", str(tmp_path), "--use_cpu"]
    _, data, training = parse_arguments(ModelArguments, PretrainDataArguments, TrainingArguments, argv=command)
    assert data.sampling_exponent == 0.3 and training.learning_rate in (1e-4, 1e-3)
    if preset == "paper":
        assert training.per_device_train_batch_size * training.gradient_accumulation_steps * 2 == 600
        assert (training.num_train_epochs, training.warmup_steps, training.max_grad_norm) == (8, 0.1, 1.0)
        assert training.optim == "adamw_torch" and data.max_length == 256
