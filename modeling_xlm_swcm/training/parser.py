"""Parse the command lines of the scripts. An error is one line: the problem, and its remedy."""

import re
import sys
from typing import NoReturn

from transformers import HfArgumentParser

from modeling_xlm_swcm.checkpoints.errors import USAGE_EXIT_CODE, list_choices


SEE_HELP = "Run with --help to list the options."
# Message of argparse or Transformers -> our message.
MESSAGES = (
    (r"invalid int value: '(.*)'", '{option} cannot be "{0}". Use a whole number.'),
    (r"invalid float value: '(.*)'", '{option} cannot be "{0}". Use a number.'),
    (r"invalid choice: '(.*)' \(choose from (.*)\)", '{option} cannot be "{0}". Use {1}.'),
    (r"Truthy value expected: got (.*) but expected .*", '{option} cannot be "{0}". Use true or false.'),
    (r"expected (?:one|at least one) argument", "{option} needs a value. Write it after {option}."),
)


class ScriptParser(HfArgumentParser):
    """A parser that prints an error about the words of a command line on one line."""

    def error(self, message: str) -> NoReturn:
        """Print the error and exit."""
        print(f"error: {describe_usage_error(message)}", file=sys.stderr)
        sys.exit(USAGE_EXIT_CODE)


def describe_usage_error(message: str) -> str:
    """Return the message of argparse in the words of this project."""
    if missing := re.fullmatch(r"the following arguments are required: (.*)", message):
        *others, last = (name.split("/")[0] for name in missing[1].split(", "))
        names = f"{', '.join(others)} and {last} are" if others else f"{last} is"
        return f"{names} missing. {SEE_HELP}"
    if about := re.fullmatch(r"argument ([^/:]+)[^:]*: (.*)", message, re.DOTALL):
        for pattern, template in MESSAGES:
            if found := re.fullmatch(pattern, about[2], re.DOTALL):
                words = [text.replace("', '", ", ").strip("'") for text in found.groups()]
                words[1:] = [list_choices(choices.split(", ")) for choices in words[1:]]
                return template.format(*words, option=about[1])
    return f"{message.removesuffix('.')}. {SEE_HELP}"
