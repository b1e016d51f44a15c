"""One tree of errors, each with a message that says what is wrong and how to mend it."""


class DetjacError(Exception):
    """Base of every error this package raises on purpose."""


class InputError(DetjacError, ValueError):
    """An argument, prompt, token or option that cannot be used."""


class ModelError(DetjacError):
    """A model that cannot be found, loaded or trusted (missing package, corrupted or non-finite weights)."""


class UnsupportedModelError(ModelError):
    """A model whose family has no exact detached network here."""


class OperatorError(DetjacError):
    """A linear operator that breaks its contract: shape, dtype, device, finiteness."""


class RunFileError(DetjacError):
    """A file or folder of results that is missing, truncated, foreign or newer than this version."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its type where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def in_one_line(error: BaseException) -> str:
    """Return an error's whole message with its line breaks as blanks, or the name of its type where it has none."""
    return " ".join(str(error).split()) or type(error).__name__
