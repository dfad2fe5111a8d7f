"""The README is true: its commands exist, its examples run, its tables are those of the code."""

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
from transformers import XLMRobertaForMaskedLM
from typer.testing import CliRunner

from modeling_xlm_swcm import XLMSWCMConfig
from modeling_xlm_swcm.conversion.cli import main
from modeling_xlm_swcm.conversion.from_encoder import WEIGHT_MAP, count_parameters


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
    assert {"shared", "random"} == results["chrF"].keys()
    assert len(results["outputs"]) > 300 and all("shared" in output for output in results["outputs"])
    assert (outputs / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert f"{results['chrF']['shared']['all']:.1f}" in printed
    assert "shared decoder: 198 tensors copied from the encoder, 28 new." in printed
    assert "random decoder: 70 tensors copied from the encoder, 156 new." in printed


def test_the_example_runs_on_what_the_demo_writes(demo):
    folder, _ = demo
    example = next(code for code in code_blocks("python") if "outputs/demo" in code)
    printed = run_python(folder, "-c", example).splitlines()
    shown = code_blocks("text")[0].splitlines()
    # the texts are those of a whole demo; the shape is the same
    assert [line.split()[0] for line in printed] == [line.split()[0] for line in shown] == ["bo", "ug", "kk", "mn"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    tokenizer = xlm_roberta_tokenizer()
    return save_encoder(tmp_path_factory.mktemp("encoder"), make_encoder(XLMRobertaForMaskedLM, tokenizer), tokenizer)


def test_the_convert_command_runs_as_printed(encoder, tmp_path):
    command = next(line for code in code_blocks("bash") for line in code.splitlines() if line.startswith("xlm-swcm"))
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
        for name in ("convert", "push", "inspect"):
            command = next(line for line in lines if line.startswith(f"xlm-swcm {name} "))
            outcome = client.command(*shlex.split(command)[1:])
            assert outcome.exit_code == 0, outcome.output
        outcome = client.run(next(code for code in code_blocks("python") if "pipeline(" in code))
    assert outcome["error"] is None and len(outcome["printed"].splitlines()) == 2
    assert hub.repositories["your-name/my-model"].private


@pytest.mark.parametrize("target", ["demo", "test", "lint", "bench"])
def test_every_make_command_is_there(target):
    run = subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0 and ".venv/bin" in run.stdout


def test_every_option_that_is_named_is_one_of_the_commands():
    help_text = "".join(CliRunner().invoke(main, [name, "--help"]).stdout for name in ("convert", "push", "inspect"))
    options = {re.match(r"--[\w-]+", part)[0] for part in re.findall(r"--[a-z][\w-]+", README.split("## Measured")[0])}
    options -= {"--base"}
    squeezed = re.sub(r"[\s│]", "", help_text)
    assert options and not [option for option in options if option[:20] not in squeezed]


def test_the_map_of_copied_weights_is_the_converters():
    """One row per module, so two tensors."""
    for source, targets in WEIGHT_MAP.items():
        module = source.removesuffix(".weight").removesuffix(".bias").replace("{}", "k")
        copies = [re.sub(r"\.(weight|bias)$", "", target) for target in targets[1:]]
        copies = [f"`{copy.removeprefix('model.decoder.layers.{}.')}`" for copy in copies]
        row = next(line for line in README.splitlines() if line.startswith(f"| `{module}"))
        assert ", ".join(copies) in row


def test_the_parameter_counts_are_those_of_the_code():
    counts = count_parameters(XLMSWCMConfig())
    assert f'| `weight_sharing="init"` | {counts["init"] / 1e6:.0f} million |' in README
    assert f'| `weight_sharing="tied"` | {counts["tied"] / 1e6:.0f} million |' in README
