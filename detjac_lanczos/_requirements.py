"""Refuse versions of torch and transformers that this package may compute something else with.

The detached network is captured from transformers' own modules; another major version may compute something else under
the same names, and a wrong Jacobian is worse than none. Within version 5, GGUF tokenizers leave out Gemma's first token
before 5.23, and some mixtures of experts are built otherwise in 5.10.

Torch keeps the meaning of its functions: 2.13.0 and 2.15.0 were tried, and later ones are let in.
"""

import sys
from importlib import metadata

from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion

from detjac_lanczos.errors import DetjacError

REQUIREMENTS = {"torch": SpecifierSet(">=2.13"), "transformers": SpecifierSet(">=5.23,<6")}


class RequirementError(DetjacError, ImportError):
    """A package this one stands on is missing or has a version outside its range."""


def check_requirements() -> None:
    """Compare the installed versions with their ranges, without importing the packages.

    Raises
    ------
    RequirementError
        If torch or transformers is missing or outside its range.
    """
    for name, wanted in REQUIREMENTS.items():
        mend = f"install one with: pip install '{name}{wanted}'"
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            raise RequirementError(f"{name} is not installed; detjac_lanczos needs {name}{wanted}; {mend}") from None
        try:
            fits = wanted.contains(version, prereleases=True)
        except InvalidVersion:  # of packaging before 26; later ones say False
            fits = False
        if not fits:
            raise RequirementError(f"{name} {version} is installed, detjac_lanczos needs {name}{wanted}; {mend}")


def require_docstrings() -> None:
    """Refuse to have transformers make a model where Python has stripped the docstrings that it reads.

    Raises
    ------
    RequirementError
        Under ``python -OO``.
    """
    if sys.flags.optimize > 1:
        raise RequirementError(
            "transformers reads its own docstrings, which Python strips under -OO (PYTHONOPTIMIZE=2); run Python "
            "without it, -O will do"
        )
