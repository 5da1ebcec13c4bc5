"""Files that are checked before any work starts, and appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from jenga_compile.errors import OutputFolderMissing, OutputIsFolder, OutputUnusable


def check_writable(path: Path) -> None:
    """Raise if no file can be written to `path`.

    Raises:
        OutputUnusable: no file can have this name, or what has it is no file.
        OutputIsFolder: there is a folder of this name.
        OutputFolderMissing: the folder does not exist, or cannot be written to.
    """
    try:
        target = path.resolve()
        kind = target.stat().st_mode if target.exists() else stat.S_IFREG
    except (OSError, RuntimeError, ValueError) as error:
        raise OutputUnusable(path=str(path), why=getattr(error, "strerror", None) or error) from error
    if stat.S_ISDIR(kind):
        raise OutputIsFolder(path=str(path))
    if not stat.S_ISREG(kind):
        raise OutputUnusable(path=str(path), why="it is no regular file")
    try:
        with tempfile.TemporaryFile(dir=target.parent):
            pass
    except OSError as error:
        raise OutputFolderMissing(path=str(path), folder=str(path.parent)) from error


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8; whatever fails, `path` is then as it was."""
    with all_or_none([path]) as (partial,):
        partial.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def all_or_none(paths: Sequence[Path]) -> Iterator[list[Path]]:
    """Temporary siblings that take the names `paths` together on success, and are removed on failure.

    A link is followed; a file that is replaced hands on its permissions.
    """
    targets = [path.resolve() for path in paths]
    partials: list[Path] = []
    try:
        for target in targets:
            handle, name = tempfile.mkstemp(dir=target.parent, prefix=".jenga.", suffix=target.suffix)
            os.close(handle)
            partials.append(Path(name))
        yield partials
        for partial, target in zip(partials, targets, strict=True):
            partial.chmod(target.stat().st_mode if target.exists() else 0o666 & ~_umask())
        for partial, target in zip(partials, targets, strict=True):
            partial.replace(target)
    finally:
        for partial in partials:
            partial.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
