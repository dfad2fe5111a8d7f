"""A Space for a model on the Hub: its files, and its page without this package."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import SpaceCard
from support.commands import assert_refused
from support.loopback_hub import Commit, Repository

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
    report = {"metrics.json": json.dumps({"task": "translation"}).encode()}
    hub.repositories["someone/other"] = Repository({"trial": Commit(hub.repositories["someone/model"].files | report)})
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
print(model.tasks)
os.environ["MODEL"] = "someone/other@trial"
exec(open("app.py").read())
print(model.tasks)
"""
    environment = hub.environment | {"HF_HOME": str(tmp_path / "home"), "PATH": "", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    assert "launched Try someone/model ['css', 'footer_links'" in run.stdout
    first, second = run.stdout.split("launched Try someone/other@trial")
    assert first.endswith("2 True\n['translation', 'summarization', 'question-answering']\n")
    assert second.endswith("\n['translation']\n")


def test_a_private_model_needs_a_secret(hub, client, converted):
    client.command("push", converted, "someone/model", "--private", "--revision", "trial")
    outcome = client.command("push", "someone/model", "--space", "someone/page", "--revision", "trial", "--private")
    assert outcome.exit_code == 0, outcome.output
    space = hub.repositories["spaces/someone/page"]
    assert space.private and "a secret with the name `HF_TOKEN`" in space.files["README.md"].decode()
    assert "Add a secret HF_TOKEN in the settings of the Space someone/page." in outcome.stdout
    assert 'os.environ.get("MODEL") or "someone/model@trial"' in space.files["app.py"].decode()
    assert hub.repositories["someone/model"].files == {}


def test_a_space_starts_again_if_its_model_has_a_new_commit(hub, client, converted):
    client.command("push", converted, "someone/model")
    for _ in range(2):
        outcome = client.command("push", "someone/model", "--space", "someone/page")
        assert outcome.exit_code == 0 and "replaces" not in outcome.stdout
    space = hub.repositories["spaces/someone/page"]
    assert len(space.commits) == 2
    model = hub.repositories["someone/model"]
    model.move("main", Commit(model.files, "new weights"))
    client.command("push", "someone/model", "--space", "someone/page")
    assert len(space.commits) == 3 and f"commit {model.refs['main'].oid} of" in space.files["app.py"].decode()


def test_a_push_of_another_model_says_so_and_keeps_the_card_of_the_owner(hub, client, converted):
    client.command("push", converted, "someone/model", "--space", "someone/page")
    space = hub.repositories["spaces/someone/page"]
    card = space.files["README.md"].decode().replace("title: page", "title: བོད་ཡིག\nsuggested_hardware: t4-small")
    for text, kept in ((None, "Try the model [someone/other]"), ("# Our model\n", "# Our model\n")):
        changed = card if text is None else f"\ufeff{card.partition('Try')[0]}{text}"
        space.move("main", Commit(space.files | {"README.md": changed.encode()}))
        outcome = client.command("push", converted, "someone/other", "--space", "someone/page")
        assert "shows someone/model now. This push replaces the model by someone/other." in outcome.stdout
        after = SpaceCard(space.files["README.md"].decode())
        assert after.data.title == "བོད་ཡིག" and after.data["suggested_hardware"] == "t4-small"
        assert after.data.models == ["someone/other"] and after.text.strip().startswith(kept.strip())


@pytest.mark.parametrize("name", ["app.py", "index.html", "Dockerfile"])
def test_another_app_is_not_replaced(hub, client, converted, tmp_path, name):
    (tmp_path / name).write_text("another app")
    hub.add("spaces/someone/page", tmp_path)
    outcome = client.command("push", converted, "someone/model", "--space", "someone/page")
    assert_refused(outcome, "someone/page holds another app", "Choose another name")
    assert hub.repositories["spaces/someone/page"].files.keys() == {name} and "someone/model" not in hub.repositories


@pytest.mark.parametrize("card", [b"---\ntitle: [\n---\n", b"---\n- a\n---\n", b"\xff\xfe"])
def test_a_damaged_card_is_refused(hub, client, converted, tmp_path, card):
    (tmp_path / "README.md").write_bytes(card)
    hub.add("spaces/someone/page", tmp_path)
    outcome = client.command("push", converted, "someone/model", "--space", "someone/page")
    assert_refused(outcome, "README.md of the Space someone/page cannot be read. Correct it, or delete it.")


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
