"""A Space for a model on the Hub: its files, and its page without this package."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import SpaceCard
from support.commands import assert_refused

from modeling_xlm_swcm.hub.space import GRADIO_VERSION, PAGE_FILES


ROOT = Path(__file__).parents[2]
FILES = {"README.md", "app.py", "requirements.txt", *PAGE_FILES}


def test_a_push_makes_a_space_for_the_model_in_one_commit(hub, client, converted):
    outcome = client.command("push", converted, "someone/model", "--space", "someone/page")
    assert outcome.exit_code == 0, outcome.output
    space = hub.repositories["spaces/someone/page"]
    assert len(space.commits) == 2 and space.files.keys() == FILES and not space.private
    assert "config.json" in hub.repositories["someone/model"].files
    card = SpaceCard(space.files["README.md"].decode())
    assert card.data.sdk == "gradio" and card.data.sdk_version == GRADIO_VERSION
    assert card.data.models == ["someone/model"] and card.data.app_file == "app.py"
    assert "HF_TOKEN" not in card.text
    assert re.findall(r"^\w+", space.files["requirements.txt"].decode(), flags=re.MULTILINE) == [
        "torch",
        "transformers",
    ]
    assert f"gradio=={GRADIO_VERSION}\n" in (ROOT / "constraints.txt").read_text()


def test_the_page_of_a_space_runs_without_this_package(hub, client, converted, tmp_path):
    client.command("push", converted, "someone/model", "--space", "someone/page")
    folder = tmp_path / "space"
    folder.mkdir()
    for name, content in hub.repositories["spaces/someone/page"].files.items():
        (folder / name).write_bytes(content)
    program = """
import sys
sys.modules["modeling_xlm_swcm"] = None
import gradio
gradio.Blocks.launch = lambda page, **options: print("launched", page.title, sorted(options))
exec(open("app.py").read())
from xlm_swcm_models import Options
options = Options(src_lang="zh", tgt_lang="bo", num_candidates=2)
print(len(model.generate(["no wind"], options, print)[0]), model.attend("no wind", options).is_joint)
"""
    environment = hub.environment | {"HF_HOME": str(tmp_path / "home"), "PATH": "", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    assert "launched Try someone/model ['css', 'footer_links'" in run.stdout
    assert run.stdout.endswith("2 True\n")


def test_a_private_model_needs_a_secret(hub, client, converted):
    client.command("push", converted, "someone/model", "--private", "--revision", "trial")
    outcome = client.command("push", "someone/model", "--space", "someone/page", "--revision", "trial", "--private")
    assert outcome.exit_code == 0, outcome.output
    space = hub.repositories["spaces/someone/page"]
    assert space.private and "a secret with the name `HF_TOKEN`" in space.files["README.md"].decode()
    assert "Add a secret HF_TOKEN in the settings of the Space someone/page." in outcome.stdout
    assert 'load_from_hub("someone/model", revision="trial"' in space.files["app.py"].decode()
    assert hub.repositories["someone/model"].files == {}


def test_the_space_offers_the_task_in_metrics_json(hub, client, folder):
    (folder / "metrics.json").write_text(json.dumps({"task": "summarization"}))
    client.command("push", folder, "someone/model")
    client.command("push", "someone/model", "--space", "someone/page")
    assert 'tasks=["summarization"]' in hub.repositories["spaces/someone/page"].files["app.py"].decode()


def test_a_space_is_replaced_but_not_another_app(hub, client, converted, tmp_path):
    client.command("push", converted, "someone/model")
    for _ in range(2):
        assert client.command("push", "someone/model", "--space", "someone/page").exit_code == 0
    assert len(hub.repositories["spaces/someone/page"].commits) == 2
    (tmp_path / "app.py").write_text("print('another app')")
    hub.add("spaces/someone/other", tmp_path)
    outcome = client.command("push", "someone/model", "--space", "someone/other")
    assert_refused(outcome, "someone/other holds another app", "Choose another name")
    assert len(hub.repositories["spaces/someone/other"].files) == 1


def test_a_dry_run_sends_nothing(hub, client, converted):
    outcome = client.command("push", converted, "someone/model", "--space", "someone/page", "--dry-run")
    assert outcome.exit_code == 0, outcome.output
    assert hub.repositories == {} and "xlm_swcm_page.py" in outcome.stdout and "Nothing was sent" in outcome.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["someone/none", "--space", "someone/page"], "The Hub has no repository someone/none"),
        (["{folder}", "--space", "someone/page"], "is a folder. A Space needs a model on the Hub."),
        (["someone/none", "--space", "page"], '"page" is not a repository id'),
        (
            ["{folder}", "someone/model", "--space", "someone/page", "--create-pr"],
            "--space cannot show a pull request",
        ),
        (["{folder}", "someone/model", "--space", "else/page"], "rights to write to spaces/else/page"),
    ],
)
def test_a_wrong_space_is_refused(hub, client, converted, arguments, message):
    outcome = client.command("push", *(argument.format(folder=converted) for argument in arguments))
    assert outcome.exit_code == 1 and message in outcome.stderr, outcome.output
    assert not any(name.startswith("spaces/") for name in hub.repositories)


def test_a_failed_commit_leaves_no_file(hub, client, converted):
    client.command("push", converted, "someone/model")
    hub.fail("POST /api/spaces/.*/commit", status=500)
    outcome = client.command("push", "someone/model", "--space", "someone/page")
    assert outcome.exit_code == 1 and hub.repositories["spaces/someone/page"].files == {}
