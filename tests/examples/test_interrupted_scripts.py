"""Ctrl-C in the scripts: one sentence, exit code 130, within two seconds, and nothing half-written."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import generate
import pytest
from support.processes import Script


EXAMPLES = Path(__file__).parents[2] / "examples"
CONTINUE = (
    "error: Interrupted. Pass --resume_from_checkpoint last to continue from the last checkpoint, if there is one."
)
STARTING = "error: Interrupted. Nothing was written."
TRAINING = "--max_steps 100000 --save_steps 5 --report_to none --bf16 false --use_cpu --dataloader_num_workers 2"


def interrupt(command: list, wait: float) -> tuple[int, str, float]:
    """Send SIGINT after `wait` seconds. Return exit code, stderr and seconds until the end."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    # A background process can ignore SIGINT.
    restore = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, *map(str, command)], env=environment, **pipes, **restore) as process:
        time.sleep(wait)
        start = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    return process.returncode, stderr, time.monotonic() - start


@pytest.fixture
def commands(learner_folder, tmp_path) -> dict[str, list]:
    (tmp_path / "rows.tsv").write_text("zh\tkk\n" + "我们\tжел жоқ\n" * 400)
    (tmp_path / "zh.txt").write_text("我们河边没有风\n" * 3000)
    (tmp_path / "corpora.yaml").write_text(f"train:\n  - {{path: {tmp_path}/zh.txt, language: zh}}\n")
    model = ["--model_name_or_path", learner_folder]
    training = [*TRAINING.split(), "--output_dir", tmp_path / "output"]
    texts = ["--data", tmp_path / "corpora.yaml", "--max_length", "30"]
    pairs = [
        "--task",
        "translation",
        "--source_lang",
        "zh",
        "--target_lang",
        "kk",
        "--train_file",
        tmp_path / "rows.tsv",
    ]
    lengths = ["--max_source_length", "30", "--max_target_length", "20"]
    sizes = ["--vocab_size", "60", "--hidden_size", "16", "--num_attention_heads", "2", "--num_hidden_layers", "2"]
    transfer = ["--test_file", tmp_path / "rows.tsv", "--high_resource", "zh-kk", "--samples", "0"]
    generate = [
        "--source_lang",
        "zh",
        "--target_lang",
        "kk",
        "--input",
        tmp_path / "zh.txt",
        "--output",
        tmp_path / "kk.txt",
    ]
    return {
        "finetune": [EXAMPLES / "finetune.py", *model, *pairs, *lengths, *training, "--do_train"],
        "transfer": [EXAMPLES / "transfer.py", *model, *pairs, *lengths, *training, *transfer],
        "pretrain": [EXAMPLES / "pretrain.py", *model, *training, *texts],
        "train_encoder": [EXAMPLES / "train_encoder.py", *training, *sizes, "--corpus", f"zh={tmp_path / 'zh.txt'}"],
        "generate": [EXAMPLES / "generate.py", *model, *generate],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("script", "is_terminal"),
    [
        ("finetune", False),
        ("pretrain", True),
        ("transfer", True),
        # These are as the others: all scripts share the trainer and its data loader.
        pytest.param("finetune", True, marks=pytest.mark.slow),
        pytest.param("train_encoder", True, marks=pytest.mark.slow),
    ],
)
def test_a_training_with_workers_ends_at_once_and_keeps_whole_checkpoints(commands, tmp_path, script, is_terminal):
    output = tmp_path / "output"
    with Script.start(*commands[script]) as running:
        while not any(output.rglob("checkpoint-*")) and running.process.is_alive():
            time.sleep(0.05)
        code, stderr, seconds = running.interrupt(all_processes=is_terminal)
    assert (code, stderr.splitlines()[-1]) == (130, CONTINUE)
    assert seconds < 2.5 and "Traceback" not in stderr
    for checkpoint in output.rglob("checkpoint-*"):
        assert (checkpoint / "trainer_state.json").is_file() and checkpoint.parent.name != "_unfinished"
    assert not list(output.rglob("_unfinished"))


@pytest.mark.parametrize("script", ["finetune", "pretrain", "transfer", "train_encoder", "generate"])
def test_a_script_that_starts_ends_at_once(commands, tmp_path, script):
    code, stderr, seconds = interrupt(commands[script], 0.7)
    assert (code, stderr.splitlines()[-1]) == (130, STARTING)
    assert seconds < 2 and "Traceback" not in stderr and not (tmp_path / "output").exists()


def test_a_generation_that_is_interrupted_writes_nothing(commands, tmp_path, monkeypatch, capsys):
    before = {path.name for path in tmp_path.iterdir()}
    (tmp_path / "kk.txt").write_text("old\n")
    monkeypatch.setattr(sys, "argv", list(map(str, commands["generate"])))

    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("modeling_xlm_swcm.training.generation.generate_lines", interrupt)
    # It changes a signal handler of this process.
    monkeypatch.setattr("modeling_xlm_swcm.training.scripts.end_workers", lambda: None)
    with pytest.raises(SystemExit) as ended:
        generate.main()
    assert ended.value.code == 130
    assert capsys.readouterr().err.splitlines()[-1] == "error: Interrupted. The output was not written."
    assert (tmp_path / "kk.txt").read_text() == "old\n"
    assert {path.name for path in tmp_path.iterdir()} == before | {"kk.txt"}
