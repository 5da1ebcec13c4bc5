"""The command as a user types it."""

from __future__ import annotations

from pathlib import Path

import pytest

from jenga_compile.cli import BAD_INPUT, main


def exit_code(arguments: list[str]) -> int:
    try:
        return main(arguments)
    except SystemExit as exit:
        return int(exit.code or 0)


def assert_refused(arguments: list[str], text: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Bad input: exit code 2, one line with `text` in it, nothing printed, and no file in the empty `folder`."""
    assert exit_code(arguments) == BAD_INPUT
    captured = capsys.readouterr()
    assert text in captured.err
    assert len(captured.err.strip().splitlines()) == 1
    assert captured.out == ""
    assert list(folder.iterdir()) == []
