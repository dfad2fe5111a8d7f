"""The README is true: its commands exist, its examples run, its tables are those of the code."""

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from encoders import make_encoder, save_encoder, xlm_roberta_tokenizer
from hub_client import hub_client
from loopback_hub import WRITE
from transformers import XLMRobertaForMaskedLM
from typer.testing import CliRunner

from modeling_xlm_swcm import XLMSWCMConfig
from modeling_xlm_swcm.conversion.cli import main
from modeling_xlm_swcm.conversion.from_encoder import OUTPUT_BIAS, WEIGHT_MAP, count_parameters


ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def code_blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def run_python(folder: Path, *arguments: str) -> str:
    run = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "2"},
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> tuple[Path, str]:
    """`make demo` with a handful of steps: the folder that it ran in, and what it printed."""
    folder = tmp_path_factory.mktemp("demo")
    steps = ["--encoder_steps", "20", "--steps", "20", "--batch_size", "16"]
    return folder, run_python(folder, str(ROOT / "examples" / "demo.py"), *steps)


def test_the_demo_goes_the_whole_way(demo):
    folder, printed = demo
    outputs = folder / "outputs" / "demo"
    results = json.loads((outputs / "results.json").read_text(encoding="utf-8"))
    assert {"copied", "random"} == results["chrF"].keys()
    assert len(results["outputs"]) > 300 and all("copied" in output for output in results["outputs"])
    assert (outputs / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert f"{results['chrF']['copied']['all']:.1f}" in printed
    assert "copied decoder: 170 tensors copied from the encoder, 60 new." in printed
    assert "random decoder: 70 tensors copied from the encoder, 156 new." in printed


def test_the_example_runs_on_what_the_demo_writes(demo):
    folder, _ = demo
    example = next(code for code in code_blocks("python") if "outputs/demo" in code)
    printed = run_python(folder, "-c", example).splitlines()
    shown = code_blocks("text")[0].splitlines()
    # the texts are those of a whole demo; the shape is the same
    assert [line.split()[0] for line in printed] == [line.split()[0] for line in shown] == ["bo", "ug", "kk", "mn"]


def test_the_export_runs_as_printed(demo):
    folder, _ = demo
    command = next(line for line in README.splitlines() if line.startswith("xlm-swcm export"))
    main_of_cli = "from modeling_xlm_swcm.conversion.cli import main; main()"
    run_python(folder, "-c", main_of_cli, *shlex.split(command)[1:])
    example = next(code for code in code_blocks("python") if "xlm_swcm_runtime" in code)
    printed = run_python(folder / "demo-int8", "-c", example)
    assert len(ast.literal_eval(printed)) == 2


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    tokenizer = xlm_roberta_tokenizer()
    return save_encoder(tmp_path_factory.mktemp("encoder"), make_encoder(XLMRobertaForMaskedLM, tokenizer), tokenizer)


def test_the_convert_command_runs_as_printed(encoder, tmp_path):
    lines = [line for code in code_blocks("bash") for line in code.splitlines()]
    command = next(line for line in lines if line.startswith("xlm-swcm convert FacebookAI"))
    arguments = shlex.split(command.replace("FacebookAI/xlm-roberta-base", str(encoder)))[1:]
    run_python(tmp_path, "-c", "from modeling_xlm_swcm.conversion.cli import main; main()", *arguments)
    assert (tmp_path / "my-model" / "model.safetensors").exists()


def test_the_conversion_in_python_runs_as_printed(encoder):
    code = next(code for code in code_blocks("python") if "from_encoder" in code)
    names = {}
    exec(code.replace("FacebookAI/xlm-roberta-base", str(encoder)), names)
    assert names["tokenizer"].languages == ["bo", "ug", "kk", "mn", "zh"]
    assert names["model"].config.vocab_size == len(names["tokenizer"])


def test_the_way_to_the_hub_and_back_runs_as_printed(hub, encoder, tmp_path):
    """Only the endpoint is another one."""
    folder = Path(shutil.copytree(encoder, tmp_path / "encoder"))
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    hub.add("FacebookAI/xlm-roberta-base", folder)
    hub.user = "your-name"
    lines = [line for code in code_blocks("bash") for line in code.splitlines()]
    with hub_client(hub, tmp_path) as client:
        for name in ("convert FacebookAI", "push my-model", "inspect"):
            command = next(line for line in lines if line.startswith(f"xlm-swcm {name}"))
            outcome = client.command(*shlex.split(command)[1:])
            assert outcome.exit_code == 0, outcome.output
        outcome = client.run(next(code for code in code_blocks("python") if "pipeline(" in code))
    assert outcome["error"] is None and len(outcome["printed"].splitlines()) == 2
    assert hub.repositories["your-name/my-model"].private


def test_the_whole_way_runs_as_printed(hub, tmp_path):
    """From the Hub to the Hub, with a small encoder, little text and few steps."""
    tokenizer = xlm_roberta_tokenizer()
    encoder = make_encoder(XLMRobertaForMaskedLM, tokenizer, max_position_embeddings=130)
    hub.add("FacebookAI/xlm-roberta-base", save_encoder(tmp_path / "encoder", encoder, tokenizer))
    hub.user = "your-name"
    syllables, characters = ["ང", "ཚོས", "དཔེ", "ཆ", "ཀློག", "གི", "ཡོད", "མི"], "我们早上去了河边没有风"
    rows = [
        ("".join(characters[i % 7 :: 1 + i % 3]), "་".join(syllables[i % 5 :: 1 + i % 2]) + "།") for i in range(40)
    ]
    for number, language in enumerate(("zh", "bo")):
        (tmp_path / f"{language}.txt").write_text("".join(row[number] + "\n" for row in rows), encoding="utf-8")
    for split in ("train", "dev", "test"):
        lines = ["zh\tbo", *map("\t".join, rows[:8])]
        (tmp_path / f"{split}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (tmp_path / "corpora.yaml").write_text(
        "train:\n- {path: bo.txt, language: bo}\n- {path: train.tsv, languages: [zh, bo]}\n"
        "validation:\n- {path: dev.tsv, languages: [zh, bo]}\n"
    )
    small = {
        "extend": ["--size", "60"],
        "pretrain.py": ["--max_length", "64", "--max_steps", "2", "--gradient_accumulation_steps", "1"],
        "finetune.py": ["--max_source_length", "64", "--max_target_length", "64", "--num_train_epochs", "1"],
        "generate.py": ["--max_length", "16"],
    }
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= hub.environment | {"HF_HOME": str(tmp_path), "HF_TOKEN": WRITE, "OMP_NUM_THREADS": "1"}
    block = next(code for code in code_blocks("bash") if "vocab extend FacebookAI" in code)
    for line in block.replace("\\\n", " ").splitlines():
        program, *arguments = shlex.split(line)
        if program == "xlm-swcm":
            program = ["-c", "from modeling_xlm_swcm.conversion.cli import main; main()"]
        else:
            program, arguments = [], [re.sub("^examples/", f"{ROOT}/examples/", word) for word in arguments]
        added = next((words for name, words in small.items() if name in line), [])
        command = [sys.executable, *program, *arguments, *added]
        run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert run.returncode == 0, f"{line}\n{run.stdout}{run.stderr}"
    assert len((tmp_path / "written.txt").read_text(encoding="utf-8").splitlines()) == len(rows)
    assert {"README.md", "model.safetensors"} <= hub.repositories["your-name/zh-bo"].files.keys()


@pytest.mark.parametrize("target", ["demo", "test", "lint", "bench"])
def test_every_make_command_is_there(target):
    run = subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0 and ".venv/bin" in run.stdout


def test_every_option_that_is_named_is_one_of_the_commands():
    commands = (["convert"], ["push"], ["inspect"], ["export"], ["vocab", "extend"], ["vocab", "trim"])
    help_text = "".join(CliRunner().invoke(main, [*command, "--help"]).stdout for command in commands)
    way = re.search(r"## The whole way\n.*?\n## ", README, flags=re.DOTALL)[0]  # has a test of its own
    options = set(re.findall(r"--[a-z][\w-]+", README.split("## Measured")[0].replace(way, "")))
    squeezed = re.sub(r"[\s│]", "", help_text)
    assert options and not [option for option in options if option[:20] not in squeezed]


def test_the_map_of_copied_weights_is_the_converters():
    """One row per module, so two tensors."""
    for source, targets in WEIGHT_MAP.items():
        module = source.removesuffix(".weight").removesuffix(".bias").replace("{}", "k")
        targets = targets if source.startswith("lm_head.") and source != OUTPUT_BIAS else targets[1:]
        copies = [re.sub(r"\.(weight|bias)$", "", target) for target in targets]
        copies = [f"`{copy.removeprefix('model.decoder.layers.{}.')}`" for copy in copies]
        row = next(line for line in README.splitlines() if line.startswith(f"| `{module}"))
        assert ", ".join(copies) in row


def test_the_parameter_counts_are_those_of_the_code():
    counts = count_parameters(XLMSWCMConfig(lm_head_transform=True))
    assert f'| `weight_sharing="init"` | {counts["init"] / 1e6:.0f} million |' in README
    assert f'| `weight_sharing="tied"` | {counts["tied"] / 1e6:.0f} million |' in README
