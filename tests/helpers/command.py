"""The command line, called in this process."""

import contextlib
import io
import signal
import sys
from unittest import mock

import pytest

from tokred import cli


def run(*arguments):
    """Call the command line in this process: (exit code, everything printed, errors last)."""
    printed, errors = io.StringIO(), io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["tokred", *map(str, arguments)]),
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(errors),
        pytest.raises(SystemExit) as ended,
    ):
        cli.main()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # an interrupted command ignores it from then on
    return ended.value.code or 0, printed.getvalue() + errors.getvalue()
