"""The README keeps its word: figures as measured, options as they are, files and verbs that exist."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from benchmarks.tables import BEGIN, END, KERNELS_BEGIN, KERNELS_END, kernels, numbers
from jenga_compile.config import Carving, Options

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_figures_are_those_of_the_results() -> None:
    assert BEGIN + numbers() + END in README, "run python -m benchmarks.tables"
    assert KERNELS_BEGIN + kernels() + KERNELS_END in README, "run python -m benchmarks.tables"


def test_every_option_stands_in_the_table_with_its_default() -> None:
    rows = [line.split("|")[1:3] for line in README.splitlines() if line.startswith("| `")]
    table = {name: default.strip() for names, default in rows for name in re.findall(r"`(\w+)`", names)}
    for field in (*dataclasses.fields(Carving), *dataclasses.fields(Options)):
        if field.name == "carving":
            continue
        default = table[field.name]
        written = field.default if not isinstance(field.default, str) else f'"{field.default}"'
        assert default.strip("`") == str(written) or (field.default is None and default in ("family's", "inferred"))


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)]+)\)", README))
def test_every_link_leads_somewhere(link: str) -> None:
    file, _, heading = link.partition("#")
    assert not file or (ROOT / file).is_file()
    headings = [line.strip("# ").lower().replace(" ", "-") for line in README.splitlines() if line.startswith("#")]
    assert not heading or heading in headings


@pytest.mark.parametrize("verb", re.findall(r"make (\w+)", README))
def test_every_verb_is_in_the_makefile(verb: str) -> None:
    assert re.search(rf"^{verb}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_every_flag_named_is_one_of_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    from jenga_compile.cli import main

    for verb in (["generate"], ["explain"], ["bench", "compile"], ["bench", "kernels"]):
        with pytest.raises(SystemExit):
            main([*verb, "--help"])
    known = set(re.findall(r"--\w+", capsys.readouterr().out))
    named = set(re.findall(r"--\w+", README)) - {"--help"}
    assert named
    assert named <= known
