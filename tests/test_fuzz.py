"""A slice of `tests.fuzz`, and that its oracle notices what it is there to notice."""

from __future__ import annotations

import itertools
from typing import Any
from unittest import mock

import pytest
import torch

from jenga_compile.kernels.carved_attention import gathered
from jenga_compile.passes.layout import proof
from jenga_compile.passes.layout.reading import Unproven
from tests.fuzz import command
from tests.fuzz.configuration import Configuration, draw, settled
from tests.fuzz.shrink import shrink
from tests.fuzz.trial import Outcome, run

SLICE = range(20_002, 20_007)

WRITTEN = Configuration(text=5, spelling="bmm", mask="key", positions="rotary", batch=2, dtype="float32")
CARVED = Configuration(grid=(3, 8, 12), keep=0.3, adjacency=False, text=5)


@pytest.mark.parametrize("seed", SLICE)
def test_a_random_model_is_carved_and_right(seed: int) -> None:
    outcome = run(draw(seed))
    assert outcome.verdict == "ok", f"{outcome.what}\n{outcome.configuration}"


@pytest.mark.parametrize("c", [WRITTEN, CARVED], ids=["written", "carved"])
def test_a_plain_model_is_carved(c: Configuration) -> None:
    outcome = run(c)
    assert (outcome.verdict, outcome.carved) == ("ok", 1), outcome.what


def test_a_seed_is_one_configuration() -> None:
    drawn = [draw(seed) for seed in range(200)]
    assert drawn == [draw(seed) for seed in range(200)]
    assert len(set(drawn)) == 200
    assert all(settled(c) == c for c in drawn)


def test_wrong_numbers_are_noticed() -> None:
    compute = gathered.carved_attention

    def slightly_off(*arguments: Any) -> torch.Tensor:
        return compute(*arguments) * (1 + 1e-4)

    with mock.patch.object(gathered, "carved_attention", slightly_off):
        assert run(CARVED).verdict == "wrong"


def test_a_wrong_grid_is_noticed() -> None:
    def turned(*arguments: Any) -> tuple[int, tuple[int, int, int]]:
        start, (t, h, w) = read(*arguments)
        return start, (t, w, h)

    read = proof.read
    with mock.patch.object(proof, "read", turned):
        assert run(CARVED).verdict == "dense"


def test_dense_attention_is_noticed() -> None:
    with mock.patch.object(proof, "read", mock.Mock(side_effect=Unproven("no grid"))):
        assert run(CARVED).verdict == "dense"


def test_an_exception_is_noticed() -> None:
    with mock.patch.object(proof, "read", mock.Mock(side_effect=ZeroDivisionError)):
        assert run(CARVED).verdict == "crash"


def test_shrinking_keeps_what_fails() -> None:
    def fails_with_keys_and_layers(c: Configuration) -> Outcome:
        return Outcome(c, "crash" if c.mask == "key" and c.layers > 1 else "ok")

    failed = next(c for c in map(draw, itertools.count()) if fails_with_keys_and_layers(c).verdict == "crash")
    with mock.patch("tests.fuzz.shrink.run", fails_with_keys_and_layers):
        smallest = shrink(fails_with_keys_and_layers(failed)).configuration
    assert smallest.differences().keys() <= {"seed", "text", "mask", "layers"}
    assert (smallest.mask, smallest.layers) == ("key", 2)


def test_the_command_fails_with_a_trial(capsys: pytest.CaptureFixture[str]) -> None:
    bad = Outcome(draw(5), "wrong", "error 1 exceeds the budget 0")
    with mock.patch.object(command, "_prepare"), mock.patch.object(command, "run", return_value=bad):
        assert command.main(["--only", "5"]) == 1
    printed = capsys.readouterr()
    assert f"{draw(5)}" in printed.out
    assert "1 of 1: 1 wrong" in printed.err


def test_the_command_passes_with_all_trials(capsys: pytest.CaptureFixture[str]) -> None:
    good = [Outcome(draw(seed), "ok", carved=2) for seed in range(3)]
    with mock.patch.object(command, "_prepare"), mock.patch.object(command, "run", side_effect=good):
        assert command.main(["--count", "3"]) == 0
    assert "3 ok, 0 wrong" in capsys.readouterr().out
