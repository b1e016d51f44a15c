"""The command line, called as a user calls it: in this process, or in one of its own."""

import json
import subprocess
import sys
from typing import Any

import pytest

from detjac_lanczos.cli import main


def call(*arguments: object) -> int:
    """Run the command line as a process would, argument errors included."""
    try:
        return main([str(argument) for argument in arguments])
    except SystemExit as leave:
        return int(leave.code or 0)


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run bad input: exit code 2, nothing on standard output, one line of advice on standard error."""
    assert call(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1, err
    return err


def in_process(*arguments: str, **options: Any) -> "subprocess.CompletedProcess[bytes]":
    command = [sys.executable, "-m", "detjac_lanczos", *arguments]
    return subprocess.run(command, check=False, **{"stderr": subprocess.PIPE} | options)


def one_after_another(
    commands: dict[tuple[str, ...], int], *flags: str, **options: Any
) -> "subprocess.CompletedProcess[bytes]":
    """Run commands in one process, which imports torch once, and fails where an exit code is not as given."""
    code = (
        "import json, sys; from detjac_lanczos.cli import main\n"
        "sys.exit([main(words) for words in json.loads(sys.argv[1])] != json.loads(sys.argv[2]))"
    )
    words, codes = json.dumps([*commands]), json.dumps([*commands.values()])
    command = [sys.executable, *flags, "-c", code, words, codes]
    return subprocess.run(command, check=False, **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options)
