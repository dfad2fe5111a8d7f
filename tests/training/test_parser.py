"""Words that a training script does not accept."""

from dataclasses import dataclass, field
from typing import Literal

import pytest

from modeling_xlm_swcm.training.parser import ScriptParser


@dataclass
class Arguments:
    task: Literal["translation", "summarization"] = field(metadata={"help": "Task."})
    source_lang: str = field(metadata={"help": "Language."})
    target_lang: str = field(metadata={"help": "Language."})
    seed: int = field(default=0, metadata={"help": "Seed."})
    learning_rate: float = field(default=0.1, metadata={"help": "Learning rate."})
    do_train: bool = field(default=False, metadata={"help": "Train."})
    files: list[str] = field(default_factory=list, metadata={"help": "Files."})


REQUIRED = "--task translation --source_lang zh --target_lang bo"
USAGE_ERRORS = {
    "": "--task, --source_lang and --target_lang are missing. Run with --help to list the options.",
    "--source_lang zh": "--task and --target_lang are missing. Run with --help to list the options.",
    "--source_lang zh --target_lang bo": "--task is missing. Run with --help to list the options.",
    "--task copy": '--task cannot be "copy". Use "translation" or "summarization".',
    f"{REQUIRED} --seed x": '--seed cannot be "x". Use a whole number.',
    f"{REQUIRED} --seed 1:2": '--seed cannot be "1:2". Use a whole number.',
    f"{REQUIRED} --learning-rate=a/b": '--learning_rate cannot be "a/b". Use a number.',
    f"{REQUIRED} --do_train maybe": '--do_train cannot be "maybe". Use true or false.',
    f"{REQUIRED} --seed": "--seed needs a value. Write it after --seed.",
    # A message without a translation stays as it is.
    f"{REQUIRED} --s 1": (
        "ambiguous option: --s could match --source_lang, --source-lang, --seed. Run with --help to list the options."
    ),
}


@pytest.mark.parametrize("words", USAGE_ERRORS)
def test_wrong_words_are_refused_in_two_sentences_with_exit_code_two(words, capsys):
    with pytest.raises(SystemExit) as exit_error:
        ScriptParser(Arguments).parse_args_into_dataclasses(words.split())
    assert exit_error.value.code == 2
    assert capsys.readouterr().err == f"error: {USAGE_ERRORS[words]}\n"
