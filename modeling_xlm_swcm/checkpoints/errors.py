"""Errors that a user can mend, each one sentence."""


class ConversionError(ValueError):
    """Something is wrong with what a user gave; the message is one sentence that names it and says what to do."""


def first_line(error: BaseException) -> str:
    """And the second, where the first only announces it."""
    first, *others = (str(error).strip() or type(error).__name__).splitlines()
    return f"{first} {others[0].strip()}" if first.endswith(":") and others else first


def refused_config(name: str, error: Exception) -> ConversionError:
    """For what the validation of a config raises, which the strict dataclass wraps in several lines."""
    return ConversionError(f"The config of {name} is refused: {' '.join(str(error).split())}")
