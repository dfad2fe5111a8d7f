"""The classes of the commands of `xlm-swcm`: options with several words, and errors on one line."""

import contextlib
import difflib
import inspect
import itertools
import traceback
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, NoReturn, get_args, get_origin, get_type_hints

import typer
from rich.console import Console
from typer.core import TyperCommand, TyperGroup
from typer.models import OptionInfo

from modeling_xlm_swcm.checkpoints.arguments import MAX_SEED, check_seed
from modeling_xlm_swcm.checkpoints.errors import (
    USAGE_EXIT_CODE,
    ConversionError,
    describe_error,
    escape_unprintable,
    list_choices,
)
from modeling_xlm_swcm.checkpoints.writing import recover, remove_unfinished
from modeling_xlm_swcm.interruption import EXIT_CODE, interruptible


# The base class of Typer's errors about the words of a command. Typer exports only this subclass.
UsageError: type[Exception] = typer.BadParameter.__bases__[0]

# Words after a switch that are meant as its value.
TRUTH_VALUES = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}

LIST_ADVICE = "Separate the values with spaces."


class Command(TyperCommand):
    """A command that cleans up after killed runs. List options accept several words: `--languages bo ug kk`."""

    options = ("--languages", "--corpus", "--eval", "--target", "--codes")
    # Typer must accept extra words, because `parse_args` refuses them with a better message.
    allow_extra_args = True

    def get_params(self, ctx) -> list:
        """Return the parameters. In the help, a switch has no type, and the name of an argument is in capitals."""
        parameters = super().get_params(ctx)
        for each in parameters:
            if getattr(each, "is_flag", False):
                each.metavar = ""
            elif each.param_type_name == "argument":
                each.metavar = name_argument(each)
        return parameters

    def collect_usage_pieces(self, ctx) -> list[str]:
        """Return the arguments and then `[OPTIONS]`, because a list option must not stand before an argument."""
        arguments = [each for each in self.get_params(ctx) if each.param_type_name == "argument"]
        names = [name_argument(each) if each.required else f"[{name_argument(each)}]" for each in arguments]
        return [*names, "[OPTIONS]"]

    def invoke(self, ctx):
        """Clean up after killed runs that wrote to a path on the command line, then run the command."""
        for value in ctx.params.values():
            if isinstance(value, str | Path):
                recover(Path(value))
        return super().invoke(ctx)

    def parse_args(self, ctx, args: list[str]) -> list[str]:
        """Repeat a list option before each of its words, as Click expects it."""
        with report_errors("--debug" in args):
            check_words([ctx.info_name or "", *args])
        repeated: list[str] = []
        option = None
        for argument in args:
            if argument.startswith("-"):
                name = argument.partition("=")[0]
                option = name if name in self.options else None
            elif option and repeated[-1] != option:
                repeated.append(option)
            repeated.append(argument)
        check_values(ctx, repeated)
        with report_usage_errors(ctx, repeated):
            extra = super().parse_args(ctx, list(repeated))
        if extra:
            refuse(f"Unexpected word {extra[0]}. Write {describe_arguments(ctx)}, then the options.")
        return extra


class Group(TyperGroup):
    """A group of commands."""

    def parse_args(self, ctx, args: list[str]) -> list[str]:
        """Parse the words before the name of a command. Without any words, print the help."""
        with report_usage_errors(ctx, args) if args else contextlib.nullcontext():
            return super().parse_args(ctx, list(args))

    def resolve_command(self, ctx, args: list[str]):
        """Return the command that the first word names."""
        if args[0] not in self.commands:
            refuse(f"Unknown command {args[0]}. Use one of: {', '.join(self.commands)}.")
        return super().resolve_command(ctx, args)


def split_codes(languages: list[str]) -> list[str]:
    """Return language codes that are separate words or words of one argument, such as "bo ug kk"."""
    return " ".join(languages).split()


def parse_seed(text: str) -> int:
    """Return the seed in `text`. With the range of a seed, Typer's help would have no room for long options."""
    seed = int(text)
    check_seed(seed)
    return seed


def seed_option(purpose: str) -> OptionInfo:
    """Return the option for a random seed."""
    return typer.Option(metavar="N", parser=parse_seed, help=f"Random seed for {purpose}.")


def refuse(message: str) -> NoReturn:
    """Print an error about the words of a command, and exit."""
    make_console(stderr=True).print(f"error: {escape_unprintable(message)}")
    raise typer.Exit(USAGE_EXIT_CODE)


@contextlib.contextmanager
def report_usage_errors(ctx: typer.Context, words: list[str]) -> Iterator[None]:
    """Print a usage error of Typer in plain English, and exit."""
    try:
        yield
    except UsageError as error:
        refuse(describe_usage_error(error, ctx, words))


def describe_usage_error(error: Exception, ctx: typer.Context, words: list[str]) -> str:
    """Return the error message for words that Typer does not accept."""
    option, parameter = getattr(error, "option_name", None), getattr(error, "param", None)
    if hasattr(error, "possibilities"):
        # The distance of Typer's suggestions is too large for short options.
        similar = " or ".join(difflib.get_close_matches(str(option), error.possibilities or (), cutoff=0.7))
        advice = f"Did you mean {similar}?" if similar else f"Run {ctx.command_path} --help to list the options."
        return f"Unknown option {option}. {advice}"
    if option is not None:
        if any(word.startswith(f"{option}=") for word in words):
            return describe_switch(option, find_value(words, [option]) or "")
        (parameter,) = (each for each in ctx.command.params if option in each.opts)
        return describe_missing_value(ctx, parameter)
    if parameter is None:
        return str(error)
    if parameter.param_type_name == "argument":
        return f"{name_argument(parameter)} is missing. Write {describe_arguments(ctx)}, then the options."
    name = parameter.opts[0]
    value = find_value(words, parameter.opts)
    if value is None:
        return f"{name} is missing. Add {name} {name_argument(parameter).removesuffix('...')}."
    if not value:
        return describe_missing_value(ctx, parameter)
    return f'{name} cannot be "{value}". {describe_values(ctx, parameter)}'


def check_values(ctx: typer.Context, words: list[str]):
    """Refuse an option whose value is missing because another option follows, and a switch with a value."""
    options = {name: each for each in ctx.command.get_params(ctx) for name in each.opts if name.startswith("--")}
    for word, following in itertools.pairwise(words):
        is_switch = getattr(options.get(word), "is_flag", False)
        if word in options and following in options and not is_switch:
            refuse(describe_missing_value(ctx, options[word]))
        if is_switch and following.lower() in TRUTH_VALUES:
            refuse(describe_switch(word, following))


def describe_switch(option: str, value: str) -> str:
    """Return the error message for a switch with a value."""
    remedy = f"Write only {option}." if TRUTH_VALUES.get(value.lower(), True) else f"Leave out {option}."
    return f"{option} takes no value (got {value}). {remedy}"


def describe_missing_value(ctx: typer.Context, parameter) -> str:
    """Return the error message for an option without a value."""
    return f"{parameter.opts[0]} needs a value. {describe_values(ctx, parameter)}"


def find_value(words: list[str], options: list[str]) -> str | None:
    """Return the last value of an option among the words of a command."""
    for word, following in reversed([*itertools.pairwise([*words, ""])]):
        name, equals, value = word.partition("=")
        if name in options:
            return value if equals else following
    return None


def name_argument(parameter) -> str:
    """Return the name of an argument or of the value of an option, as help texts write it."""
    return parameter.metavar or parameter.name.upper()


def describe_arguments(ctx: typer.Context) -> str:
    """Return the command with its arguments, for example `xlm-swcm convert SOURCE OUTPUT`."""
    arguments = [each for each in ctx.command.params if each.param_type_name == "argument"]
    return " ".join([ctx.command_path, *map(name_argument, arguments)])


def describe_values(ctx: typer.Context, parameter) -> str:
    """Return a sentence that says which values an option accepts."""
    assert ctx.command.callback is not None
    hints = get_type_hints(inspect.unwrap(ctx.command.callback), include_extras=True)
    kind, settings = get_args(hints[parameter.name])
    kinds = (kind, *get_args(kind))
    choices = [choice for each in kinds if get_origin(each) is Literal for choice in get_args(each)]
    if choices:
        return f"Use {list_choices(choices)}."
    minimum, maximum = (0, MAX_SEED) if settings.parser is parse_seed else (settings.min, settings.max)
    limits = "" if minimum is None else f" from {minimum} to {maximum}"
    if int in kinds:
        return f"Use a whole number{limits}."
    if float in kinds:
        return f"Use a number{limits or ', for example 0.5'}."
    return f"Write {parameter.opts[0]} {name_argument(parameter).removesuffix('...')}."


def check_words(words: list[str]):
    """Refuse empty words, and words that are not valid UTF-8."""
    if "" in words:
        before = words[words.index("") - 1]
        raise ConversionError(
            f"The word after {before} on the command line is empty. Write a value, or leave out the option."
        )
    for word in words:
        try:
            word.encode()
        except UnicodeEncodeError as error:
            raise ConversionError(f"{word} is not valid UTF-8. Rename the file, for example with convmv.") from error


def check_packages(user: str, packages: Iterable[str], extra: str):
    """Raise a `ConversionError` if a package of an extra is not installed. `user` begins the sentence."""
    if missing := [name for name in packages if find_spec(name) is None]:
        raise ConversionError(
            f"{user} needs {', '.join(missing)}. Install xlm-swcm with the extra {extra}, for example with pip "
            f"install '.[{extra}]' in a clone."
        )


def make_console(**options) -> Console:
    """Return a console that prints text as it is, for example a path with square brackets."""
    return Console(markup=False, emoji=False, highlight=False, soft_wrap=True, **options)


@contextlib.contextmanager
def report_errors(debug: bool, when_interrupted: str = "Nothing was written.") -> Iterator[None]:
    """Print an error on one line and exit with code 1, or 130 after Ctrl-C. `debug` also prints the traceback."""
    interrupted = f"Interrupted. {when_interrupted}"
    try:
        with interruptible(f"error: {interrupted}", remove_unfinished):
            yield
    except BaseException as error:
        if isinstance(error, SystemExit):
            raise
        if debug:
            traceback.print_exc()
        is_interrupt = isinstance(error, KeyboardInterrupt)
        make_console(stderr=True).print(f"error: {interrupted if is_interrupt else describe_error(error)}")
        raise typer.Exit(EXIT_CODE if is_interrupt else 1) from error
