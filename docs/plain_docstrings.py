"""Remove Transformers' docstring markup that the documentation site would show literally."""

import re

import griffe


# (`int`, *optional*, defaults to 3): -> (int, optional, defaults to 3):
TYPE = re.compile(r"(?m)^( *\w+) \((.*)\):$")
# [`XLMSWCMModel`] or [`~transformers.Trainer`] -> `XLMSWCMModel` or `Trainer`
LINK = re.compile(r"\[`~?(?:[\w.]*\.)?(\w+)`\](?!\()")


def plain_type(argument: re.Match) -> str:
    """Return the first line of an argument without markup in its type."""
    return f"{argument[1]} ({re.sub('[`*]', '', argument[2])}):"


def remove_markup(text: str) -> str:
    """Return a docstring without markup in types, and with links to classes as code."""
    return TYPE.sub(plain_type, LINK.sub(r"`\1`", text))


class PlainDocstrings(griffe.Extension):
    """Extension of griffe that removes the markup of each docstring."""

    def on_object(self, *, obj: griffe.Object, **kwargs):
        """Change the docstring of an object when griffe has read it."""
        if obj.docstring:
            obj.docstring.value = remove_markup(obj.docstring.value)
