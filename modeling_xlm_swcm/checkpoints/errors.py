"""The error for input that a user can correct, and helpers for its message."""


class ConversionError(ValueError):
    """Raised for input that cannot be used. The message names the problem and says what to do."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error message, joined with the second line if the first ends in a colon."""
    first, *others = (str(error).strip() or type(error).__name__).splitlines()
    return f"{first} {others[0].strip()}" if first.endswith(":") and others else first


def make_config_error(name: str, error: Exception) -> ConversionError:
    """Return the error for a config that its class rejects, with the several lines of the cause on one line."""
    return ConversionError(f"The config of {name} is invalid: {' '.join(str(error).split())}")
