"""The program ``detjac``; it lies beside the package, which refuses its own import where torch does not fit it."""

import sys


def main() -> int:
    """Run the command line; where the package cannot be imported, say why as it says all bad input."""
    try:
        from detjac_lanczos.cli import main as command_line
    except ImportError as error:
        print(f"detjac: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return command_line()
