"""examples/pretrain.py as a user runs it: killed and resumed, in several processes, with bad data."""

import json
import os
import random
import runpy
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.encoders import SENTENCES, edit_config
from support.fsdp_process import check_step
from support.pretrain_process import pretrain_and_record, pretrain_until
from support.processes import run_in_new_process, run_in_two_processes
from transformers import AutoTokenizer, DataCollatorForSeq2Seq

from modeling_xlm_swcm import XLMSWCMForConditionalGeneration
from modeling_xlm_swcm.conversion import convert
from modeling_xlm_swcm.training.arguments import ModelArguments, TrainingArguments, parse_arguments
from modeling_xlm_swcm.training.checkpoints import TrainingError
from modeling_xlm_swcm.training.pretraining import PretrainDataArguments, pretrain
from modeling_xlm_swcm.training.rows import DataError


PRETRAIN = Path(__file__).parents[2] / "examples" / "pretrain.py"
SCRIPT = Path(__file__).parents[1] / "support" / "pretrain_process.py"
LANGUAGES = ["en", "ug", "zh"]


@pytest.fixture(scope="module")
def model_folder(encoder_folder, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("converted") / "model"
    convert(encoder_folder, folder, languages=LANGUAGES)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Return a folder with different texts, pairs and held-out text."""
    folder = tmp_path_factory.mktemp("data")
    words = " ".join(SENTENCES[:2]).split()
    draw = random.Random(0)
    texts = [" ".join(draw.choices(words, k=draw.randint(3, 12))) + " " + str(number) for number in range(90)]
    (folder / "en.txt").write_text("\n".join(texts[:70]) + "\n")
    (folder / "ug.txt").write_text("\n".join(texts[70:]) + "\n")
    pairs = [{"en": " ".join(words[n : n + 4]), "zh": SENTENCES[-1][n : n + 5]} for n in range(10)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    corpora = {
        "train": [
            {"path": str(folder / "en.txt"), "language": "en"},
            {"path": str(folder / "ug.txt"), "language": "ug"},
            {"path": str(folder / "pairs.jsonl"), "languages": ["en", "zh"]},
        ],
        "validation": [{"path": str(folder / "ug.txt"), "language": "ug"}],
    }
    (folder / "corpora.json").write_text(json.dumps(corpora))
    return folder


def options(model: Path, data: Path, output: Path, *more) -> list[str]:
    settings = {
        "--model_name_or_path": model,
        "--data": data / "corpora.json",
        "--output_dir": output,
        "--max_length": 36,
        "--max_steps": 8,
        "--per_device_train_batch_size": 4,
        "--learning_rate": 1e-3,
        "--save_steps": 2,
        "--logging_steps": 1,
        "--report_to": "none",
        "--bf16": "false",
        "--shuffle_buffer": 20,
        "--license": "mit",
    }
    return [str(part) for pair in settings.items() for part in pair] + [
        "--use_cpu",
        "--disable_tqdm",
        "true",
        *map(str, more),
    ]


def run(command: list[str], **environment) -> subprocess.CompletedProcess:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | environment
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)


def pretrain_here(*arguments):
    """Pretrain in this process, which has the imports done."""
    pretrain(*parse_arguments(ModelArguments, PretrainDataArguments, TrainingArguments, argv=options(*arguments)))


def launch(*arguments, **environment) -> subprocess.CompletedProcess:
    """Run the script in two processes that communicate through gloo."""
    # With --cpu instead of --multi_gpu, Accelerate starts one process and needs MPI for more.
    settings = "--multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no"
    launcher = [sys.executable, "-m", "accelerate.commands.launch", *settings.split(), "--main_process_port", "0"]
    return run([*launcher, str(SCRIPT), *options(*arguments)], **environment)


def history(folder: Path) -> dict[str, list[float]]:
    log = json.loads((folder / "checkpoint-8" / "trainer_state.json").read_text())["log_history"]
    return {name: [entry[name] for entry in log if name in entry] for name in ("loss", "grad_norm")}


@torch.no_grad()
def loss_of(model_folder: Path, data: Path) -> float:
    """Return the loss of copying the English texts."""
    model = XLMSWCMForConditionalGeneration.from_pretrained(model_folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(model_folder, src_lang="en", tgt_lang="en")
    texts = (data / "en.txt").read_text().splitlines()
    batch = DataCollatorForSeq2Seq(tokenizer)(
        [dict(tokenizer(text, text_target=text, truncation=True)) for text in texts]
    )
    return model(**batch).loss.item()


def read_record(path: Path) -> list[list]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def uninterrupted(model_folder, data, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("whole")
    pretrain_here(model_folder, data, output)
    return output


@pytest.fixture(scope="module")
def still_model(model_folder, tmp_path_factory) -> Path:
    """Return a model without dropout, because each process draws different dropout masks."""
    folder = Path(shutil.copytree(model_folder, tmp_path_factory.mktemp("still") / "model"))
    edit_config(folder, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    return folder


class TestResume:
    # A kill while a checkpoint is written goes on from the checkpoint before it, as a kill between two checkpoints.
    @pytest.mark.parametrize("moment", [pytest.param("step", marks=pytest.mark.slow), "save"])
    def test_killed_and_resumed_is_the_same(self, uninterrupted, model_folder, data, tmp_path, moment):
        kill = f"{moment} {random.choice([4, 6])}" if moment == "save" else f"step {random.randint(2, 8)}"
        # The uninterrupted run has no loader workers.
        loader = ["--dataloader_num_workers", 1]
        assert run_in_new_process(pretrain_until, kill, options(model_folder, data, tmp_path, *loader)) == -9, kill
        pretrain_here(model_folder, data, tmp_path, *loader, "--resume_from_checkpoint", "last")
        for file in ("model.safetensors", "checkpoint-8/model.safetensors"):
            assert (tmp_path / file).read_bytes() == (uninterrupted / file).read_bytes(), kill
        assert history(tmp_path) == history(uninterrupted), kill
        assert not (tmp_path / "_unfinished").exists()

    def test_what_has_ended_ends_at_once(self, uninterrupted, model_folder, data, tmp_path):
        folder = Path(shutil.copytree(uninterrupted, tmp_path / "again"))
        pretrain_here(model_folder, data, folder, "--resume_from_checkpoint", "last")
        assert (folder / "model.safetensors").read_bytes() == (uninterrupted / "model.safetensors").read_bytes()

    def test_it_has_learnt_and_left_its_results(self, uninterrupted, model_folder, data):
        assert len(history(uninterrupted)["loss"]) == 8
        # Losses of different steps do not compare, because each step has other texts.
        assert loss_of(uninterrupted, data) < loss_of(model_folder, data) - 0.1
        metrics = json.loads((uninterrupted / "metrics.json").read_text())
        assert metrics["results"]["loss"] > 0 and metrics["training"]["steps"] == 8
        expected = "en.txt (en, 98 examples, sampled 43.6%); ug.txt (ug, 26 examples, sampled 29.3%)"
        assert metrics["training"]["training data"].startswith(expected)
        assert metrics["training"]["mask_share"] == 0.35
        assert round(metrics["training"]["unk_share (texts in ug)"], 3) == 0.036
        card = (uninterrupted / "README.md").read_text()
        assert "The training record names no task." in card and "It was trained for" not in card
        assert (uninterrupted / "training.png").is_file()
        before, after = load_file(model_folder / "model.safetensors"), load_file(uninterrupted / "model.safetensors")
        loaded, info = XLMSWCMForConditionalGeneration.from_pretrained(uninterrupted, output_loading_info=True)
        frozen = {name for name, parameter in loaded.named_parameters() if not parameter.requires_grad}
        equal = {name for name in before if torch.equal(before[name], after[name])}
        assert {name for name in equal if "k_proj.bias" not in name} == frozen
        # Nothing reads the output of the last encoder layer.
        assert frozen and all("encoder.layer.3." in name for name in frozen)
        assert not any(info.values())


class TestProcesses:
    @pytest.mark.parametrize("launcher", [None, pytest.param("accelerate", marks=pytest.mark.slow)])
    def test_two_learn_what_one_learns(self, still_model, data, tmp_path, launcher):
        one, two, accumulated = (tmp_path / name for name in ("one", "two", "accumulated"))
        batch = "--per_device_train_batch_size"
        pretrain_here(still_model, data, one, batch, 8)
        pretrain_here(still_model, data, accumulated, batch, 2, "--gradient_accumulation_steps", 4)
        if launcher:
            process = launch(still_model, data, two, batch, 4, RECORD=str(tmp_path / "seen"))
            assert process.returncode == 0, process.stderr
        else:
            words = options(still_model, data, two, batch, 4)
            run_in_two_processes(tmp_path, pretrain_and_record, str(tmp_path / "seen"), words)

        for other in (two, accumulated):
            for name, values in history(one).items():
                assert history(other)[name] == pytest.approx(values, rel=1e-4), name
        first, second = (
            [(epoch, *(token for token in labels if token != -100)) for epoch, labels in read_record(path)]
            for path in sorted(tmp_path.glob("seen.*"))
        )
        # Each loader is one batch ahead.
        assert len(first) == len(second) == 9 * 4
        assert len({*first, *second}) == len(first + second)

    @pytest.mark.parametrize(
        ("options", "layers"),
        [
            ({"decoder_blocks": 4 * ["prefix"]}, 4 * ["XLMSWCMPrefixDecoderLayer"]),
            ({}, [*4 * ["XLMSWCMCustomDecoderLayer"], "XLMSWCMNormalDecoderLayer"]),
        ],
    )
    def test_sharded_over_processes_a_step_is_that_of_the_whole_model(self, tmp_path, options, layers):
        run_in_two_processes(tmp_path, partial(check_step, tmp_path, **options))
        units = sorted([*layers, *4 * ["XLMRobertaLayer"], "XLMSWCMForConditionalGeneration"])
        assert json.loads((tmp_path / "units.json").read_text()) == [units, 0.5]


class TestOptions:
    def test_lora_scheduled_sampling_and_bfloat16(self, model_folder, data, tmp_path):
        more = ["--lora", "--lora_rank", 4, "--scheduled_sampling", 0.5, "--bf16", "true", "--max_steps", 3]
        pretrain_here(model_folder, data, tmp_path, *more)
        training = json.loads((tmp_path / "metrics.json").read_text())["training"]
        assert (training["lora_rank"], training["precision"], training["scheduled_sampling"]) == (4, "bfloat16", 0.5)
        loaded, info = XLMSWCMForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
        assert not any(info.values())

    def test_epochs_become_steps(self, model_folder, data, tmp_path):
        pretrain_here(model_folder, data, tmp_path, "--max_steps", -1, "--num_train_epochs", 0.5)
        # Half of 98 + 26 + 20 examples in batches of 4.
        assert json.loads((tmp_path / "metrics.json").read_text())["training"]["steps"] == 18

    @pytest.mark.parametrize(
        ("text", "more", "message"),
        [
            (None, {}, r"[^ ]*/bad\.txt does not exist\. Check the path\."),
            # The worker of the data loader raises this error.
            ("\n\n", {"examples": 9}, r"2 rows cannot be used: .*/bad\.txt:1 is empty .*, or pass --skip_bad_rows\."),
        ],
    )
    def test_errors_are_one_sentence(self, model_folder, data, tmp_path, monkeypatch, text, more, message):
        if text:
            (tmp_path / "bad.txt").write_text(text)
        corpora = {"train": [{"path": str(tmp_path / "bad.txt"), "language": "en"} | more]}
        (tmp_path / "bad.json").write_text(json.dumps(corpora))
        bad = options(model_folder, data, tmp_path, "--data", tmp_path / "bad.json", "--dataloader_num_workers", 1)
        monkeypatch.setattr(sys, "argv", ["pretrain.py", *bad])
        with pytest.raises(SystemExit, match=f"^error: {message}$"):
            runpy.run_path(str(PRETRAIN), run_name="__main__")

    def test_validation_data_without_a_row_is_not_left_out(self, model_folder, data, tmp_path):
        corpora = json.loads((data / "corpora.json").read_text())
        (tmp_path / "empty.txt").write_text("\n")
        corpora["validation"].append(corpora["validation"][0] | {"path": str(tmp_path / "empty.txt")})
        (tmp_path / "corpora.json").write_text(json.dumps(corpora))
        more = ["--data", tmp_path / "corpora.json", "--skip_bad_rows"]
        with pytest.raises(DataError, match=r"The validation corpus empty\.txt has no usable row"):
            pretrain_here(model_folder, data, tmp_path / "output", *more)

    @pytest.mark.parametrize(
        ("more", "message"),
        [
            (["--max_length", 39], r"--max_length must be between 8 and 38 for this model \(got 39\)\."),
            (["--mask_share", 2], "mask_share must be between 0 and 1"),
            (["--shuffle_buffer", 0], "--shuffle_buffer must be at least 1"),
            (["--sampling_exponent", "nan"], r"--sampling_exponent must be between 0 and 1 \(got nan\)\."),
            (
                ["--max_steps", -1, "--num_train_epochs", 0],
                "There are no training steps. Pass --max_steps or --num_train_epochs.",
            ),
        ],
    )
    def test_what_is_refused(self, model_folder, data, tmp_path, more, message):
        with pytest.raises((DataError, TrainingError), match=message):
            pretrain_here(model_folder, data, tmp_path, *more)
