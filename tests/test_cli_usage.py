"""Errors about words that a command does not accept. Each error has two sentences: the problem and its remedy."""

import pytest
from typer.testing import CliRunner

from modeling_xlm_swcm.cli import main


CONVERT = "Write xlm-swcm convert SOURCE OUTPUT, then the options."
SEED = "Use a whole number from 0 to 4294967295."
COMMANDS = "convert, convert-released, push, inspect, refresh, evaluate, serve, try, export, vocab"

USAGE_ERRORS = {
    "convert": f"SOURCE is missing. {CONVERT}",
    "convert source": f"OUTPUT is missing. {CONVERT}",
    "convert source output more": f"Unexpected word more. {CONVERT}",
    "convert --languages bo source output": f"SOURCE is missing. {CONVERT}",
    "convert source output --layer-map diagonal": '--layer-map cannot be "diagonal". Use "same" or "interleaved".',
    "convert source output --decoder-init no": '--decoder-init cannot be "no". Use "silent", "shared" or "random".',
    "convert source output --normal-layers few": '--normal-layers cannot be "few". Use "random", "copy" or "none".',
    "convert source output --weight-sharing none": '--weight-sharing cannot be "none". Use "init" or "tied".',
    "convert source output --dtype int8": '--dtype cannot be "int8". Use "float32", "bfloat16" or "float16".',
    "convert source output --seed one": f'--seed cannot be "one". {SEED}',
    "convert source output --seed=-5 --overwrite": f'--seed cannot be "-5". {SEED}',
    "convert source output --seed 1 --seed 4294967296": f'--seed cannot be "4294967296". {SEED}',
    "convert source output --seed": f"--seed needs a value. {SEED}",
    "convert source output --seed=": f"--seed needs a value. {SEED}",
    "convert source output --seed --dry-run": f"--seed needs a value. {SEED}",
    "convert source output --license": "--license needs a value. Write --license LICENSE.",
    "convert source output --languages": "--languages needs a value. Write --languages CODE.",
    "convert source output --dry-run=1": "--dry-run takes no value (got 1). Write only --dry-run.",
    "convert source output --normal-layer-interval x": '--normal-layer-interval cannot be "x". Use a whole number.',
    "convert source output --overwrite true": "--overwrite takes no value (got true). Write only --overwrite.",
    "push folder owner/name --private=False": "--private takes no value (got False). Leave out --private.",
    "convert source output --langauges bo": "Unknown option --langauges. Did you mean --languages?",
    "convert source output --json": "Unknown option --json. Run xlm-swcm convert --help to list the options.",
    "convert source output --xyz\u0007": (
        "Unknown option --xyz\\x07. Run xlm-swcm convert --help to list the options."
    ),
    "vocab extend source output --corpus bo.txt": "--size is missing. Add --size N.",
    "vocab extend source output --corpus --size 3": "--corpus needs a value. Write --corpus FILE.",
    "vocab trim source output": "--corpus is missing. Add --corpus FILE.",
    "vocab trim source output --corpus bo.txt --coverage most": (
        '--coverage cannot be "most". Use a number, for example 0.5.'
    ),
    "serve folder --max-seconds 0": '--max-seconds cannot be "0". Use a number from 0.1 to 86400.',
    "push folder": "REPO is missing. Write xlm-swcm push FOLDER REPO, then the options.",
    "--seed": "Unknown option --seed. Run xlm-swcm --help to list the options.",
    "konvert": f"Unknown command konvert. Use one of: {COMMANDS}.",
    "vocab shrink": "Unknown command shrink. Use one of: extend, trim.",
}


@pytest.mark.parametrize("words", USAGE_ERRORS)
def test_wrong_words_are_refused_in_two_sentences_with_exit_code_two(words):
    result = CliRunner().invoke(main, words.split(), prog_name="xlm-swcm")
    assert result.stderr == f"error: {USAGE_ERRORS[words]}\n"
    assert result.exit_code == 2
    assert result.stdout == ""


@pytest.mark.parametrize("group", [[], ["vocab"]], ids=" ".join)
def test_a_group_without_a_command_prints_its_help(group):
    result = CliRunner().invoke(main, group, prog_name="xlm-swcm")
    assert "Commands" in result.output and "error" not in result.output


@pytest.mark.parametrize(
    ("command", "usage"),
    [("convert", "SOURCE OUTPUT [OPTIONS]"), ("push", "FOLDER [REPO] [OPTIONS]"), ("evaluate", "MODEL... [OPTIONS]")],
)
def test_the_usage_has_the_options_last_and_a_switch_has_no_type(command, usage):
    result = CliRunner().invoke(main, [command, "--help"], prog_name="xlm-swcm")
    assert f"Usage: xlm-swcm {command} {usage} " in result.output
    assert "bool" not in result.output


def test_no_name_is_cut_in_the_help_of_a_narrow_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    for name in [*COMMANDS.split(", ")[:-1], "vocab extend", "vocab trim"]:
        result = CliRunner().invoke(main, [*name.split(), "--help"])
        assert result.exit_code == 0 and "…" not in result.stdout, name
