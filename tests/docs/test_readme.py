"""The README is true: its examples run, and its tables match the code. See also `test_docs.py`."""

import ast
import json
import re
import runpy
import shlex
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import pytest
from support.encoders import make_encoder, save_encoder, xlm_roberta_tokenizer
from support.hub_client import Client
from support.processes import FORKSERVER, write_to
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, XLMRobertaForMaskedLM
from typer.testing import CliRunner

from modeling_xlm_swcm import XLMSWCMConfig
from modeling_xlm_swcm.checkpoints.families.xlm_roberta import FAMILY
from modeling_xlm_swcm.cli import main
from modeling_xlm_swcm.conversion.plan import OUTPUT_BIAS, count_parameters


ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
METHOD = (ROOT / "docs" / "concepts" / "method.md").read_text(encoding="utf-8")


def code_blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def section(title: str) -> str:
    return re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", README, flags=re.DOTALL | re.MULTILINE)[1]


def run_script(path: Path, *words: str):
    """Run a script in this process, as Python does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(path), *words])
        patch.syspath_prepend(str(path.parent))
        runpy.run_path(str(path), run_name="__main__")


def test_it_is_neither_long_nor_short():
    """Return the words outside code blocks, including tables. A word has a letter or a digit."""
    text = re.sub(r"```.*?```", "", README, flags=re.DOTALL)
    assert 1000 <= sum(re.search(r"\w", word) is not None for word in text.split()) <= 1200


def test_its_sections_stand_in_order():
    titles = ["Install", "Quickstart", "Commands", "How it works", "Results", "Supported encoders"]
    titles += ["Supported versions", "Limits", "Differences from the authors' code", "Folders"]
    titles += ["Contribute, cite, licence"]
    assert re.findall(r"^## (.+)$", README, flags=re.MULTILINE) == titles


def test_the_demo_goes_the_whole_way_and_its_model_writes_every_language(encoder, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    # One process trains both models. It starts with the imports done.
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    monkeypatch.setattr("multiprocessing.get_context", lambda method: FORKSERVER)
    pool = partial(ProcessPoolExecutor, initializer=write_to, initargs=[tmp_path / "printed"])
    monkeypatch.setattr("concurrent.futures.ProcessPoolExecutor", pool)
    options = ["--base", str(encoder), "--phrases", "200", "--steps", "5", "--batch_size", "64"]
    run_script(ROOT / "examples" / "demo.py", *options)
    printed = capfd.readouterr().out + (tmp_path / "printed").read_text()
    outputs = tmp_path / "outputs" / "demo"
    results = json.loads((outputs / "results.json").read_text(encoding="utf-8"))
    assert [*results["scores"]] == [
        *(f"phrases, {language}" for language in ("Tibetan", "Uyghur", "Kazakh", "Mongolian")),
        "names, all",
    ]
    assert all({"copied", "random"} == scores.keys() for scores in results["scores"].values())
    assert len(results["outputs"]) > 350 and all("copied" in output for output in results["outputs"])
    assert (outputs / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert re.search(r"Vocabulary: 1\d\d tokens, trimmed 1?\d\d, with Tibetan \d{3}\.", printed)
    assert re.search(r"Copied decoder: \S+ million parameters, 0 new tensors, 0 of them random\.", printed)
    assert re.search(r"Random decoder: \S+ million parameters, \d+ new tensors, 64 of them random\.", printed)
    assert "the random decoder has a loss of" in printed
    model = AutoModelForSeq2SeqLM.from_pretrained(outputs / "copied")
    tokenizer = AutoTokenizer.from_pretrained(outputs / "copied", src_lang="zh")
    assert tokenizer.languages == ["zh", "bo", "ug", "kk", "mn"]
    inputs = tokenizer(["吉尔吉斯语", "突尼斯第纳尔"], padding=True, return_tensors="pt")
    for language in tokenizer.languages[1:]:
        tokens = model.generate(**inputs, forced_bos_token_id=tokenizer.get_lang_id(language), max_new_tokens=8)
        assert tokens[:, 1].tolist() == 2 * [tokenizer.get_lang_id(language)]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    tokenizer = xlm_roberta_tokenizer()
    return save_encoder(tmp_path_factory.mktemp("encoder"), make_encoder(XLMRobertaForMaskedLM, tokenizer), tokenizer)


def test_the_quickstart_runs_as_printed(encoder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code = next(code for code in code_blocks("python") if "from_encoder" in code)
    assert len(code.splitlines()) < 26
    exec(code.replace("FacebookAI/xlm-roberta-base", str(encoder)), {})
    assert len(ast.literal_eval(capsys.readouterr().out.splitlines()[-1])) == 4
    assert (tmp_path / "zh-kk" / "model.safetensors").exists()


def run(client: Client, code: str):
    outcome = client.run(code)
    assert outcome["error"] is None, f"{code}\n{outcome['error']}"


def test_the_whole_way_runs_as_printed(hub, client, tmp_path):
    """From the Hub to the Hub and to a pipeline, with a small encoder, little text and few steps."""
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
    block = next(code for code in code_blocks("bash") if "vocab extend FacebookAI" in code)
    (pipeline,) = [code for code in code_blocks("python") if "pipeline(" in code]
    with client.working_in(tmp_path):
        for line in re.sub(r"\\\n|^#.*\n", " ", block, flags=re.MULTILINE).splitlines():
            program, *words = shlex.split(line)
            added = next((more for name, more in small.items() if name in line), [])
            words = [re.sub("^examples/", f"{ROOT}/examples/", word) for word in words] + added
            if program == "xlm-swcm":
                outcome = client.command(*words)
                assert outcome.exit_code == 0, f"{line}\n{outcome.output}"
            elif program != "hf":  # HF_TOKEN logs in
                script = f"runpy.run_path({words[0]!r}, run_name='__main__')"
                run(client, f"import runpy, sys; sys.argv = {words!r}; {script}")
        run(client, pipeline)
    assert len((tmp_path / "output.txt").read_text(encoding="utf-8").splitlines()) == len(rows)
    assert {"README.md", "model.safetensors"} <= hub.repositories["your-name/zh-bo"].files.keys()


@pytest.mark.parametrize("target", ["demo", "test", "lint", "bench"])
def test_every_make_command_is_there(target):
    run = subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0 and ".venv/bin" in run.stdout


def test_every_command_has_a_row_and_every_row_is_a_command():
    rows = re.findall(r"^\| `([^`]+)` \|.*\]\((docs/guides/[\w-]+\.md)\) \|$", section("Commands"), flags=re.MULTILINE)
    listed = {name.removeprefix("xlm-swcm ") for name, _ in rows if name.startswith("xlm-swcm ")}
    groups = {None: main, "vocab": main.registered_groups[0].typer_instance}
    names = {
        " ".join(filter(None, [group, command.name or command.callback.__name__.replace("_", "-")]))
        for group, app in groups.items()
        for command in app.registered_commands
    }
    assert listed == names
    scripts = {path.name for path in (ROOT / "examples").glob("*.py") if "__main__" in path.read_text("utf-8")}
    scripts |= {path.name for path in (ROOT / "examples").glob("*.ipynb")}
    # demo.py is `make demo`
    assert {Path(name).name for name, _ in rows if name.startswith("examples/")} == scripts - {"demo.py"}
    for name, guide in rows:
        assert name in (ROOT / guide).read_text(encoding="utf-8"), f"{guide} does not tell of {name}"


def test_every_option_that_is_named_is_one_of_the_commands():
    commands = (["convert"], ["push"], ["inspect"], ["refresh"], ["export"], ["vocab", "extend"], ["vocab", "trim"])
    help_text = "".join(CliRunner().invoke(main, [*command, "--help"]).stdout for command in commands)
    without_code = re.sub(r"```.*?```", "", README, flags=re.DOTALL)
    options = set(re.findall(r"--[a-z][\w-]+", without_code))
    squeezed = re.sub(r"[\s│]", "", help_text)
    assert options and not [option for option in options if option[:20] not in squeezed]


def test_every_report_of_a_result_holds_its_figures():
    lines = [line for line in section("Results").splitlines() if line.startswith("|")]
    rows = [line.split("|") for line in lines if "docs/results/" in line]
    assert len(rows) > 4
    for row in rows:
        report = (ROOT / re.search(r"\((docs/results/.+?)\)", row[3])[1]).read_text(encoding="utf-8")
        for figure in re.findall(r"\d+\.\d+", row[2]):
            assert re.search(rf"(?<![\d.]){re.escape(figure)}(?!\d)", report), f"{row[1]}: {figure}"


def test_the_map_of_copied_weights_is_the_converters():
    """One row per module, so two tensors."""
    for source, targets in FAMILY.map_weights("custom").items():
        module = source.removesuffix(".weight").removesuffix(".bias").replace("{}", "k")
        targets = targets if source.startswith("lm_head.") and source != OUTPUT_BIAS else targets[1:]
        copies = [re.sub(r"\.(weight|bias)$", "", target) for target in targets]
        copies = [f"`{copy.removeprefix('model.decoder.layers.{}.')}`" for copy in copies]
        row = next(line for line in METHOD.splitlines() if line.startswith(f"| `{module}"))
        assert ", ".join(copies) in row


def test_the_parameter_counts_are_those_of_the_code():
    counts = count_parameters(XLMSWCMConfig(lm_head_transform=True))
    for sharing, option in (("init", ""), ("tied", " --weight-sharing tied")):
        assert f"| `--decoder paper{option}` | {counts[sharing] / 1e6:.0f} million |" in METHOD
        assert f"{counts[sharing] / 1e6:.0f} million" in section("How it works")
