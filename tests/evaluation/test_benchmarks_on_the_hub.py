"""Benchmarks on a loopback Hub: files in the layout of FLORES+, gated as they are on the real Hub."""

import json

import pytest
from support.commands import assert_refused
from support.evaluation import SOURCES, TARGETS
from support.loopback_hub import READ, Commit, Repository


FILES = {
    f"devtest/{code}.jsonl": "".join(
        json.dumps({"id": place, "text": text}, ensure_ascii=False) + "\n" for place, text in enumerate(texts)
    ).encode()
    for code, texts in {"cmn_Hans": SOURCES, "bod_Tibt": TARGETS}.items()
}


@pytest.fixture
def words(hub, converted) -> list:
    repository = Repository(gated=True)
    repository.move("main", Commit(FILES | {"README.md": b"x", "devtest/eng_Latn.jsonl": b""}))
    hub.repositories["openlanguagedata/flores_plus"] = repository
    options = ["--source", "zh", "--target", "bo", "--num-beams", 1, "--max-length", 4]
    return ["evaluate", converted, "--data", "flores+", *options]


def test_a_gated_benchmark_is_named_with_the_page_where_to_ask(hub, client, words):
    # The files are not in the cache yet.
    outcome = client.command(*words, token=READ)
    assert_refused(outcome, "datasets/openlanguagedata/flores_plus is gated. Ask for access at", hub.endpoint)


def test_its_files_are_downloaded_when_the_command_runs(hub, client, words):
    outcome = client.command(*words)
    assert outcome.exit_code == 0, outcome.output
    assert "openlanguagedata/flores_plus (devtest): scores" in outcome.stdout
    assert " 4 " in outcome.stdout
    fetched = {path.rpartition("/")[2] for method, path, _ in hub.requests if method == "GET" and "/resolve/" in path}
    assert fetched == {"cmn_Hans.jsonl", "bod_Tibt.jsonl"}


def test_a_missing_dataset_is_named(client, words):
    outcome = client.command(*words[:3], "cmhg", "--target", "bo")
    assert_refused(outcome, "The Hub has no repository datasets/KEVVVV/CMHG")
