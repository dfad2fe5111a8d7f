"""Push to a Hub on the loopback interface with the real client."""

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from support.commands import assert_refused
from support.encoders import edit_config, edit_tensors
from support.folders import contents
from support.hub_client import SENT, Outcome, hub_client
from support.loopback_hub import READ, WRITE
from transformers import AutoModelForSeq2SeqLM
from typer.testing import CliRunner

import modeling_xlm_swcm
from modeling_xlm_swcm import XLMSWCMTokenizer, cli
from modeling_xlm_swcm.cli import main
from modeling_xlm_swcm.conversion import convert


def pushed(outcome) -> str:
    assert outcome.exit_code == 0, outcome.output
    return re.search(r"Pushed: (\S+)", outcome.stdout)[1]


def test_a_push_sends_the_whole_model_in_one_commit_and_nothing_else(hub, client, folder, encoder_folder):
    for stray in ("optimizer.pt", "trainer_state.json", "notes.txt", "secret.py", "adapter_model.safetensors"):
        (folder / stray).write_text("not for the Hub")
    (folder / "checkpoint-10").mkdir()
    (folder / "checkpoint-10" / "model.safetensors").write_text("not for the Hub")
    before = contents(folder)
    outcome = client.command("push", folder, "someone/model")
    repository = hub.repositories["someone/model"]
    commit = repository.refs["main"]
    assert pushed(outcome) == f"{hub.endpoint}/someone/model/commit/{commit.oid}"
    assert commit.files.keys() == SENT
    assert repository.commits[commit.parent].files == {}
    for name in SENT - {"README.md", "conversion_report.json"}:
        assert commit.files[name] == (folder / name).read_bytes()
    # The pushed report names the encoder without its local path.
    report, sent = ((folder / "conversion_report.json").read_text(), commit.files["conversion_report.json"].decode())
    assert json.loads(report)["source"] == str(encoder_folder)
    assert sent == report.replace(str(encoder_folder), encoder_folder.name)
    assert str(encoder_folder.parent) not in commit.files["README.md"].decode()
    assert contents(folder) == before
    assert not repository.private


def test_what_will_be_sent_is_listed_with_sizes_and_a_dry_run_stops_there(hub, client, converted):
    outcome = client.command("push", converted, "someone/model", "--dry-run", token=None)
    assert outcome.exit_code == 0, outcome.output
    listed = dict(re.findall(r"^ (\S+\.\w+) +(\S.*?) *$", outcome.stdout, flags=re.MULTILINE))
    assert listed.keys() == SENT
    assert listed["model.safetensors"] == f"{(converted / 'model.safetensors').stat().st_size / 1000:.1f} kB"
    assert "Nothing was sent" in outcome.stdout
    assert hub.requests == []


def test_shards_and_parts_arrive_whole(hub, client, folder):
    model = AutoModelForSeq2SeqLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="200KB")
    hub.part_size = 70_000
    pushed(client.command("push", folder, "someone/model"))
    shards = {path.name for path in folder.glob("model-*.safetensors")}
    files = hub.repositories["someone/model"].files
    assert len(shards) > 1
    assert files.keys() == (SENT - {"model.safetensors"}) | shards | {"model.safetensors.index.json"}
    assert all(files[name] == (folder / name).read_bytes() for name in shards)
    assert hub.count(r"PUT /lfs/\w+\?part=2") and hub.count("POST /lfs/.*/complete")


def test_a_push_removes_files_of_an_older_model_and_keeps_other_files(hub, client, converted, tmp_path):
    (tmp_path / "old").mkdir()
    weights = ("model-00001-of-00002.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
    adapter, reports = ("adapter_config.json", "adapter_model.safetensors"), ("metrics.json", "training.png")
    for name in (*weights, *adapter, *reports, "products_xlm_swcm.py", "training_args.bin"):
        (tmp_path / "old" / name).write_text("old")
    hub.add("someone/model", tmp_path / "old")
    pushed(client.command("push", converted, "someone/model"))
    assert hub.repositories["someone/model"].files.keys() == SENT | {"training_args.bin"}


def test_a_push_sends_the_code_of_the_package_and_not_that_of_the_folder(hub, client, folder):
    old = Path(__file__).parents[1] / "fixtures" / "saved_by_0_1_0"
    (folder / "compat_xlm_swcm.py").unlink()
    for path in old.glob("*.py"):
        shutil.copy(path, folder)
    before = contents(folder)
    pushed(client.command("push", folder, "someone/model"))
    files = hub.repositories["someone/model"].files
    assert files.keys() == SENT
    package = Path(modeling_xlm_swcm.__file__).parent
    for name in files:
        if name.endswith(".py"):
            assert files[name] == (package / name).read_bytes()
    assert contents(folder) == before


def test_pushing_the_same_again_makes_no_commit(hub, client, converted):
    first, second = (pushed(client.command("push", converted, "someone/model")) for _ in range(2))
    assert first == second
    assert len(hub.repositories["someone/model"].commits) == 2


def test_private_branch_and_message_are_what_was_asked_for(hub, client, converted):
    arguments = ["--private", "--revision", "trial", "--commit-message", "A first trial"]
    pushed(client.command("push", converted, "someone/model", *arguments))
    repository = hub.repositories["someone/model"]
    assert repository.private
    assert repository.files == {}
    assert repository.refs["trial"].files.keys() == SENT
    assert repository.refs["trial"].message == "A first trial"


def test_a_pull_request_leaves_the_branch_as_it_was(hub, client, converted):
    hub.add("someone/model", converted)
    before = hub.repositories["someone/model"].refs["main"]
    # A token with read access can open a pull request.
    url = pushed(client.command("push", converted, "someone/model", "--create-pr", token=READ))
    assert url == f"{hub.endpoint}/someone/model/discussions/1"
    repository = hub.repositories["someone/model"]
    assert repository.refs["main"] is before
    assert repository.refs["refs/pr/1"].files.keys() >= SENT


def test_convert_pushes_what_it_has_written(hub, client, encoder_folder, output):
    arguments = ["--languages", "bo", "zh", "--push-to-hub", "someone/model", "--license", "mit", "--private"]
    pushed(client.command("convert", encoder_folder, output, *arguments))
    repository = hub.repositories["someone/model"]
    assert repository.private
    assert repository.files.keys() == SENT
    assert repository.files["model.safetensors"] == (output / "model.safetensors").read_bytes()


def test_the_token_shows_nowhere(hub, client, converted, tmp_path):
    outcomes = [client.command("push", converted, "someone/model", "--debug")]
    outcomes.append(client.command("push", converted, "someone/model", "--debug", token="hf_wrong"))
    outcomes.append(client.command("push", converted, "nobody/model", "--debug"))
    outcomes.append(client.command("push", converted, "someone/model", "--debug", token="hf_odd\x01token"))
    assert [outcome.exit_code for outcome in outcomes] == [0, 1, 1, 1]
    for outcome in outcomes:
        assert not re.search(f"{WRITE}|hf_wrong|hf_odd", outcome.output)
    for content in hub.repositories["someone/model"].files.values():
        assert WRITE.encode() not in content


def test_errors_and_dropped_connections_that_pass_are_overcome(hub, client, converted):
    hub.fail("POST /api/models/.*/preupload", status=503, times=1)
    hub.fail("PUT /lfs/", drop=True, times=1)
    hub.fail("GET|POST", wait=0.3, times=2)
    pushed(client.command("push", converted, "someone/model"))
    assert hub.repositories["someone/model"].files.keys() == SENT
    assert hub.count("PUT /lfs/") == 2


PUSH = "from modeling_xlm_swcm.cli import main; main()"


def test_an_upload_that_is_killed_leaves_the_repository_as_it_was_and_succeeds_when_run_again(
    hub, client, converted, tmp_path
):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "config.json").write_text("{}")
    hub.add("someone/model", tmp_path / "old")
    before = dict(hub.repositories["someone/model"].refs)
    failure = hub.fail("PUT /lfs/", hold=threading.Event(), times=1)
    environment = hub.environment | {"HF_TOKEN": WRITE, "HF_HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-c", PUSH, "push", str(converted), "someone/model"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert failure.seen.wait(200)
        process.send_signal(signal.SIGKILL)
    failure.hold.set()
    assert hub.repositories["someone/model"].refs == before
    pushed(client.command("push", converted, "someone/model"))
    assert hub.repositories["someone/model"].files.keys() == SENT


def test_a_commit_that_fails_leaves_the_repository_as_it_was_and_the_next_push_sends_no_weights_again(
    hub, client, converted
):
    hub.fail("POST /api/models/.*/commit/", status=500, times=1)
    assert_refused_after_list(
        client.command("push", converted, "someone/model"), "someone/model", "Internal error, on purpose"
    )
    assert hub.repositories["someone/model"].files == {}
    assert hub.count("PUT /lfs/") == 1
    pushed(client.command("push", converted, "someone/model"))
    assert hub.repositories["someone/model"].files.keys() == SENT
    assert hub.count("PUT /lfs/") == 1


def test_two_pushes_at_once_do_not_mix(hub, client, converted, folder, tmp_path):
    """If a second push commits during the upload of the first, the first fails and changes nothing."""
    edit_tensors(folder, lambda tensors: {name: 2 * tensor for name, tensor in tensors.items()})
    (folder / "README.md").write_text(
        "---\nlicense: mit\nlibrary_name: x\npipeline_tag: y\nlanguage: [bo]\n---\n# Other\n"
    )
    failure = hub.fail("PUT /lfs/", hold=threading.Event(), times=1)
    outcomes = []
    first = threading.Thread(target=lambda: outcomes.append(client.command("push", converted, "someone/model")))
    first.start()
    assert failure.seen.wait(200)
    with hub_client(hub, tmp_path) as other:
        pushed(other.command("push", folder, "someone/model"))
    failure.hold.set()
    first.join()
    assert_refused_after_list(outcomes[0], "someone/model", "Somebody else changed", "Push again")
    files = hub.repositories["someone/model"].files
    for name in SENT - {"conversion_report.json"}:
        assert files[name] == (folder / name).read_bytes(), name


def test_a_full_quota_is_said_and_leaves_the_repository_as_it_was(hub, client, converted):
    hub.quota = 1000
    assert_refused_after_list(
        client.command("push", converted, "someone/model"), "someone/model", "Storage limit reached"
    )
    assert hub.repositories["someone/model"].files == {}


@pytest.mark.parametrize(
    ("token", "words"),
    [
        (None, ["no token", "hf auth login", "HF_TOKEN"]),
        ("hf_wrong", ["does not know your token", "hf auth login", "HF_TOKEN"]),
        (READ, ["someone/model", "don't have the rights"]),
        ("hf_with a blank", ["invalid character", "hf auth login", "HF_TOKEN"]),
    ],
)
def test_a_token_that_may_not_push_is_said_in_one_sentence(hub, client, converted, token, words):
    assert_refused_after_list(client.command("push", converted, "someone/model", token=token), *words)
    assert "someone/model" not in hub.repositories


def assert_refused_after_list(outcome, *words):
    assert "model.safetensors" in outcome.stdout
    assert_refused(
        Outcome(outcome.exit_code, "", outcome.stderr.split("\n", outcome.stderr.count("\n") - 1)[-1]), *words
    )


def drop_layer(tensors):
    return {name: tensor for name, tensor in tensors.items() if ".layers.3." not in name}


def unlink(name):
    return lambda folder: (folder / name).unlink()


def write(name, text):
    return lambda folder: (folder / name).write_text(text)


CARD = "---\nlicense: mit\nlibrary_name: transformers\npipeline_tag: translation\nlanguage: [zh]\n---\n# Mine\n"

BAD_FOLDERS = {
    "no folder": (shutil.rmtree, ["does not exist"]),
    "no config": (unlink("config.json"), ["config.json"]),
    "another kind of model": (
        lambda folder: edit_config(folder, model_type="bart"),
        ['"bart"', "Pass an XLM-SWCM model."],
    ),
    "no weights": (unlink("model.safetensors"), ["no weights in safetensors"]),
    "weights cut short": (write("model.safetensors", "half"), ["model.safetensors", "cut short"]),
    "a layer missing": (lambda folder: edit_tensors(folder, drop_layer), ["missing keys", "decoder.layers.3."]),
    "a tensor too many": (
        lambda folder: edit_tensors(folder, lambda tensors: tensors | {"model.more": torch.ones(3)}),
        ["unexpected keys", "model.more"],
    ),
    "sizes that do not fit": (lambda folder: edit_config(folder, intermediate_size=36), ["mismatched", ".fc1.bias"]),
    "no tokenizer": (unlink("tokenizer.json"), ["lacks tokenizer.json"]),
    "a damaged tokenizer": (write("tokenizer.json", "{"), ["tokenizer"]),
    "another tokenizer": (
        write("tokenizer_config.json", '{"tokenizer_class": "XLMRobertaTokenizer"}'),
        ["XLMRobertaTokenizer", "XLMSWCMTokenizer"],
    ),
    "a tokenizer larger than the embedding": (
        lambda folder: XLMSWCMTokenizer.from_pretrained(folder, extra_special_tokens=["<one>"]).save_pretrained(
            folder
        ),
        ["152 tokens", "151 rows"],
    ),
    "no report": (unlink("conversion_report.json"), ["conversion_report.json", "Copy it"]),
    "a report of something else": (write("conversion_report.json", "{}"), ["conversion_report.json", "source"]),
    "metrics that are a list": (write("metrics.json", "[]"), ["metrics.json"]),
    "metrics of another shape": (
        write("metrics.json", '{"results": 3}'),
        ["metrics.json", '"results"', "must be a JSON object"],
    ),
    "metrics of another task": (write("metrics.json", '{"task": "fill-mask"}'), ["metrics.json", '"fill-mask"']),
    "a card without a field": (
        write("README.md", CARD.replace("license: mit\n", "")),
        ["README.md", 'lacks license. Add lines such as "license: mit" between'],
    ),
    "a card without metadata": (
        write("README.md", "# Mine\n"),
        ["README.md", "lacks license, library_name", '"language: [zh, kk, bo]"'],
    ),
    "a card that is not YAML": (write("README.md", "---\na: [\n---\n"), ["README.md", "YAML"]),
}


@pytest.mark.parametrize("case", BAD_FOLDERS)
def test_a_folder_that_is_not_complete_is_refused_before_anything_is_sent(hub, client, folder, case):
    change, words = BAD_FOLDERS[case]
    change(folder)
    assert_refused(client.command("push", folder, "someone/model"), *words)
    assert hub.requests == []


@pytest.mark.parametrize(
    "repo_id", ["model", "some one/model", "someone/model/more", "someone/", "/tmp/model", "a--b/c"]
)
def test_a_malformed_repository_id_is_refused_before_anything_is_done(hub, client, converted, encoder_folder, repo_id):
    assert_refused(client.command("push", converted, repo_id), f'"{repo_id}"', "owner/")
    convert = ["convert", encoder_folder, converted.parent / "other", "--license", "mit", "--push-to-hub", repo_id]
    assert_refused(client.command(*convert), f'"{repo_id}"', "owner/")
    assert not (converted.parent / "other").exists()
    assert hub.requests == []


def test_swapped_arguments_are_named(hub, client, converted):
    with client.working_in(converted.parent):
        outcome = client.command("push", "someone/model", converted.name)
    assert_refused(outcome, f"{converted.name} is a folder, and someone/model is not. Write the folder first")


def test_an_unknown_licence_is_asked_for_and_not_guessed(hub, client, encoder_folder, output):
    command = ["convert", encoder_folder, output, "--push-to-hub", "someone/model"]
    assert_refused(client.command(*command), str(encoder_folder), "licence", "--license")
    assert not output.exists()
    convert(encoder_folder, output)
    assert_refused(client.command("push", output, "someone/model"), encoder_folder.name, "licence", "--license")
    assert_refused(client.command("push", output, "someone/model", "--license", "MIT"), "Pass --license mit.")
    pushed(client.command("push", output, "someone/model", "--license", "cc-by-4.0"))
    assert ModelCard(hub.repositories["someone/model"].files["README.md"].decode()).data.license == "cc-by-4.0"


def test_an_encoder_that_is_not_there_is_named_before_its_licence(hub, client, output):
    command = client.command("convert", "./no-folder", output, "--push-to-hub", "someone/model")
    assert_refused(command, "./no-folder", "does not exist")


def test_private_does_not_publish_to_a_repository_that_is_public(hub, client, converted):
    hub.add("someone/model", converted)
    commits = len(hub.repositories["someone/model"].commits)
    outcome = client.command("push", converted, "someone/model", "--private")
    assert_refused_after_list(outcome, "someone/model exists and is public")
    assert len(hub.repositories["someone/model"].commits) == commits


def test_no_network_is_said_in_one_sentence(converted, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", WRITE)
    push, inspect = ["push", str(converted), "someone/model"], ["inspect", "someone/model"]
    with socket.socket() as taken:
        # Nothing listens on this port.
        taken.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{taken.getsockname()[1]}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", nowhere)
        began = time.monotonic()
        for command in (inspect, ["convert", "no-folder", str(converted.parent / "other")]):
            result = CliRunner().invoke(main, command)
            assert_refused(result, f"There is no folder {command[1]}", "Check the path, or the connection to the Hub.")
        # The Hub client alone retries for 23 seconds for each command.
        assert time.monotonic() - began < 20
        assert_refused_after_list(CliRunner().invoke(main, push), nowhere, "cannot be reached")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        assert_refused_after_list(CliRunner().invoke(main, push), nowhere, "cannot be reached", "offline")
        assert_refused(CliRunner().invoke(main, inspect), "someone/model", "Hub")


def test_a_push_that_is_interrupted_says_what_there_is(encoder_folder, converted, output, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setenv("HF_TOKEN", WRITE)
    monkeypatch.setattr(cli, "upload", interrupt)
    push = ["push", str(converted), "someone/model"]
    convert = ["convert", str(encoder_folder), str(output), "--license", "mit", "--push-to-hub", "someone/model"]
    for command, words in ((push, "Push again"), (convert, f"{output} is written")):
        outcome = CliRunner().invoke(main, command)
        assert outcome.exit_code == 130
        assert outcome.stderr.splitlines()[-1].startswith(f"error: Interrupted. {words}")
    assert (output / "config.json").is_file()


def test_a_card_that_somebody_wrote_is_sent_as_it_is(hub, client, folder):
    (folder / "README.md").write_text(CARD)
    other_license = client.command("push", folder, "someone/model", "--license", "apache-2.0")
    assert_refused(other_license, 'README.md names the licence "mit", but --license is "apache-2.0".')
    pushed(client.command("push", folder, "someone/model"))
    assert hub.repositories["someone/model"].files["README.md"] == CARD.encode()


@pytest.mark.parametrize(
    ("card", "is_kept"),
    [
        (CARD, True),
        ("---\nlicense: mit\n---\n\n", False),
        ("---\nlibrary_name: peft\n---\n\n# Model Card for Model ID\n", False),
        ("This model card has been automatically generated.", False),
    ],
    ids=["written", "without text", "PEFT", "Transformers"],
)
def test_a_generated_card_does_not_replace_a_card_that_somebody_wrote_on_the_hub(
    hub, client, folder, tmp_path, card, is_kept
):
    (tmp_path / "remote").mkdir()
    (tmp_path / "remote" / "README.md").write_text(card)
    hub.add("someone/model", tmp_path / "remote")
    pushed(client.command("push", folder, "someone/model"))
    files = hub.repositories["someone/model"].files
    assert files.keys() == SENT
    assert (files["README.md"] == card.encode()) == is_kept
    # A card in the folder is sent.
    (folder / "README.md").write_text(CARD + "\nNew.\n")
    pushed(client.command("push", folder, "someone/model"))
    assert hub.repositories["someone/model"].files["README.md"].endswith(b"\nNew.\n")
