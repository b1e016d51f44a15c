"""``python -m bench``: what it needs is imported where an interrupt has its one line."""

import sys

from detjac_lanczos.cli.process import Interrupts, exit_code


def _run(interrupts: Interrupts) -> int:
    from bench.whole import main

    interrupts.check()
    return main()


if __name__ == "__main__":
    sys.exit(exit_code(_run))
