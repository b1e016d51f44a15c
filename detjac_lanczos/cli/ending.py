"""How a program ends: what was raised as one line on standard error, and an exit code."""

from __future__ import annotations

import signal
import sys
import traceback
from collections.abc import Callable

from detjac_lanczos.cli.parser import BAD_INPUT
from detjac_lanczos.cli.process import Interrupts, mended_streams, noted_interrupts, require_output
from detjac_lanczos.errors import DetjacError

_SIGNALLED = 128
_ENDED = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}


def exit_code(run: Callable[[Interrupts], int], *, verbose: Callable[[], bool] = lambda: False) -> int:
    """Run something that gives an exit code; return it, or that of the error or interrupt that ended it."""
    with noted_interrupts() as interrupts, mended_streams():
        try:
            require_output()
            code = run(interrupts)
            interrupts.check()
            return code
        except DetjacError as error:
            if verbose():
                traceback.print_exc()
            print(f"detjac: {' '.join(str(error).split())}", file=sys.stderr)
            return BAD_INPUT
        except (Exception, KeyboardInterrupt) as error:
            if interrupts.noted is None and not isinstance(error, KeyboardInterrupt):
                raise
            number = signal.Signals(interrupts.noted or signal.SIGINT)
            print(f"detjac: {_ENDED[number]}", file=sys.stderr)
            return _SIGNALLED + number
