"""What is refused is told to people: in one line, and without a token."""

import re

import pytest

from hf_finemix import FineMixingError
from hf_finemix.cli import main

TOKEN = re.compile("hf_[A-Za-z0-9]{30}")


def one_line(error) -> str:
    """The message of an exception that `pytest.raises` has caught."""
    message = str(error.value)
    assert message
    assert "\n" not in message
    assert not TOKEN.search(message)
    return message


def refused(call, *args, **settings) -> str:
    """Why the package does not do what it is called for."""
    with pytest.raises(FineMixingError) as error:
        call(*args, **settings)
    return one_line(error)


def refused_command(capsys, *argv) -> str:
    """The last line that a command which must fail shows."""
    capsys.readouterr()
    assert main([str(part) for part in argv]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("hf-finemix: error: ")
    assert not TOKEN.search(line)
    return line
