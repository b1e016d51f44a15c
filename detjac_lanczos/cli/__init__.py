"""The command line: words to function calls, results to text, errors to exit codes; nothing is computed here.

Exit codes: 0 fine, 1 a claim failed or work stopped short, 2 bad input (one line on standard error), 130 interrupted,
143 terminated.
Rooms are imported inside the commands, so that ``--help`` and bad arguments cost neither torch nor transformers.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from contextlib import ExitStack

from detjac_lanczos.cli import commands
from detjac_lanczos.cli.parser import Parser, make_parser
from detjac_lanczos.cli.process import Interrupts, exit_code

__all__ = ["Parser", "main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments; those of the process by default.
    """
    arguments = Namespace(verbose=False)

    def run(interrupts: Interrupts) -> int:
        parser = make_parser()
        _, rest = parser.parse_known_args(argv, arguments)
        if rest and arguments.run is not commands.bench:
            parser.error(f"unknown argument {rest[0]!r}")
        arguments.rest, arguments.interrupts = rest, interrupts
        with ExitStack() as arguments.afterwards:
            return int(arguments.run(arguments))

    return exit_code(run, verbose=lambda: bool(arguments.verbose))
