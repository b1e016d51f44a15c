"""The command line: words to function calls, results to text, errors to exit codes; nothing is computed here.

Exit codes: 0 fine, 1 a claim failed or work stopped short, 2 bad input (one line on standard error), 130 interrupted.
Rooms are imported inside the commands, so that ``--help`` and bad arguments cost neither torch nor transformers.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence

from detjac_lanczos.cli import commands
from detjac_lanczos.cli.parser import BAD_INPUT, Parser, make_parser
from detjac_lanczos.cli.process import mend_streams, noted_interrupts
from detjac_lanczos.errors import DetjacError

__all__ = ["Parser", "main"]

_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments; those of the process by default.
    """
    parser = make_parser()
    arguments, rest = parser.parse_known_args(argv)
    if rest and arguments.run is not commands.bench:
        parser.error(f"unknown argument {rest[0]!r}")
    arguments.rest = rest
    with noted_interrupts() as interrupts:
        try:
            mend_streams()
            return int(arguments.run(arguments))
        except DetjacError as error:
            if getattr(arguments, "verbose", False):
                traceback.print_exc()
            print(f"detjac: {' '.join(str(error).split())}", file=sys.stderr)
            return BAD_INPUT
        except (Exception, KeyboardInterrupt) as error:
            if not interrupts and not isinstance(error, KeyboardInterrupt):
                raise
            print("detjac: interrupted", file=sys.stderr)
            return _INTERRUPTED
