"""What `import jenga_compile` gives, and how soon."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys

import pytest

import jenga_compile


def test_everything_promised_is_there() -> None:
    for name in jenga_compile.__all__:
        assert getattr(jenga_compile, name) is not None
    assert jenga_compile.__version__ == importlib.metadata.version("jenga-compile")
    assert callable(jenga_compile.explain)


def test_what_is_not_there_is_said() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'explian'"):
        jenga_compile.explian  # noqa: B018


def test_the_command_line_is_read_before_torch_is_imported() -> None:
    script = "import sys, jenga_compile.cli; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
