"""Choosing a kernel: the fastest that is right, remembered until something changes. No GPU: the clock is planted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from jenga_compile.errors import NoKernelWorks

tuning = pytest.importorskip("jenga_compile.kernels.tuning", reason="needs Triton", exc_type=ImportError)

TRUTH = torch.linspace(1, 2, 64)
WRONG = {
    "not a number": TRUTH.where(TRUTH < 1.9, torch.nan),
    "infinite": TRUTH.where(TRUTH < 1.9, torch.inf),
    "off by two units": TRUTH * (1 + 2 * torch.finfo(torch.bfloat16).eps),
}


class Planted(NamedTuple):
    """A candidate that says how long it takes and what it gives."""

    name: str
    ms: float
    out: torch.Tensor = TRUTH.bfloat16()

    def __repr__(self) -> str:
        return self.name

    def __call__(self) -> torch.Tensor:
        return self.out


class Failing(Planted):
    def __call__(self) -> torch.Tensor:
        raise RuntimeError("out of shared memory\nand more")


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Who was timed, in order; the cache is an empty folder."""
    timed: list[str] = []

    def planted(call: Planted) -> float:
        timed.append(call.name)
        return call.ms

    monkeypatch.setattr(tuning, "_time", planted)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return timed


@pytest.fixture
def choose(tmp_path: Path) -> Callable[..., str]:
    source = tmp_path / "kernel.py"
    source.write_text("first")

    def chosen(
        *candidates: Planted, what: str = "a problem", truth: torch.Tensor = TRUTH, allowed: float | None = None
    ) -> str:
        best = tuning.fastest(
            what,
            source=source,
            candidates=candidates,
            run=lambda x: x,
            truth=truth,
            device=torch.device("cpu"),
            allowed=allowed,
        )
        return best.name

    return chosen


SLOW, QUICK, MIDDLE = Planted("slow", 3.0), Planted("quick", 1.0), Planted("middle", 2.0)


def test_the_fastest_wins(measured: list[str], choose: Callable[..., str]) -> None:
    assert choose(SLOW, QUICK, MIDDLE) == "quick"
    assert measured == ["slow", "quick", "middle"]


@pytest.mark.parametrize("why", WRONG)
def test_a_wrong_one_never_wins(measured: list[str], choose: Callable[..., str], why: str) -> None:
    assert choose(SLOW, Planted("wrong", 0.1, WRONG[why].bfloat16())) == "slow"
    assert measured == ["slow"]


def test_right_is_what_the_dtype_allows(measured: list[str], choose: Callable[..., str]) -> None:
    nearly = TRUTH * (1 + torch.finfo(torch.bfloat16).eps / 4)
    assert choose(SLOW, Planted("quick", 1.0, nearly.bfloat16())) == "quick"
    assert choose(SLOW, Planted("as quick in fp32", 1.0, nearly)) == "slow"


def test_a_kernel_may_be_allowed_more(measured: list[str], choose: Callable[..., str]) -> None:
    rough = Planted("rough", 1.0, (TRUTH * 1.05).bfloat16())
    assert choose(SLOW, rough) == "slow"
    assert choose(SLOW, rough, what="a rough problem", allowed=0.06) == "rough"
    assert choose(SLOW, rough, what="a less rough problem", allowed=0.04) == "slow"


def test_a_failing_one_is_skipped(measured: list[str], choose: Callable[..., str]) -> None:
    assert choose(Failing("failing", 0.1), SLOW) == "slow"


def test_if_none_works_the_first_reason_is_told(measured: list[str], choose: Callable[..., str]) -> None:
    with pytest.raises(NoKernelWorks, match=r"a problem .*out of shared memory"):
        choose(Failing("failing", 0.1), Planted("wrong", 0.1, WRONG["not a number"]))
    with pytest.raises(NoKernelWorks, match="relative error inf"):
        choose(Planted("wrong", 0.1, WRONG["not a number"]))


def test_the_choice_is_remembered_on_disk(measured: list[str], choose: Callable[..., str], tmp_path: Path) -> None:
    assert [choose(SLOW, QUICK) for _ in range(3)] == ["quick"] * 3
    assert measured == ["slow", "quick"]
    (file,) = (tmp_path / "cache" / "jenga_compile").iterdir()
    assert file.read_text() == '{"fastest": "quick"}'


def test_the_choice_is_forgotten_with_what_it_was_made_for(
    monkeypatch: pytest.MonkeyPatch, measured: list[str], choose: Callable[..., str], tmp_path: Path
) -> None:
    choose(SLOW, QUICK)
    choose(SLOW, QUICK, what="another problem")
    assert measured == ["slow", "quick"] * 2
    assert choose(SLOW, MIDDLE) == "middle"
    assert measured[4:] == ["slow", "middle"]
    (tmp_path / "kernel.py").write_text("second")
    choose(SLOW, QUICK)
    assert measured[6:] == ["slow", "quick"]
    (tmp_path / "parts.py").write_text("what the kernel imports")
    choose(SLOW, QUICK)
    assert measured[8:] == ["slow", "quick"]
    monkeypatch.setattr(tuning.triton, "__version__", "another")
    choose(SLOW, QUICK)
    assert measured[10:] == ["slow", "quick"]


def test_running_out_of_memory_decides_nothing(measured: list[str], choose: Callable[..., str]) -> None:
    class Full(Planted):
        def __call__(self) -> torch.Tensor:
            raise torch.OutOfMemoryError

    with pytest.raises(torch.OutOfMemoryError):
        choose(SLOW, Full("quick", 1.0))
    assert choose(SLOW, QUICK) == "quick"


def test_a_user_without_a_home_goes_without_a_cache(
    monkeypatch: pytest.MonkeyPatch, measured: list[str], choose: Callable[..., str], tmp_path: Path
) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr("os.path.expanduser", lambda path: str(tmp_path / "kernel.py" / path))
    assert choose(SLOW, QUICK) == "quick"


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"fastest": "gone"}', '{"fastest": null}'])
def test_a_cache_that_says_nothing_is_written_anew(
    measured: list[str], choose: Callable[..., str], tmp_path: Path, text: str
) -> None:
    choose(SLOW, QUICK)
    (file,) = (tmp_path / "cache" / "jenga_compile").iterdir()
    file.write_text(text)
    assert choose(SLOW, QUICK) == "quick"
    assert measured == ["slow", "quick"] * 2
    assert file.read_text() == '{"fastest": "quick"}'


def test_a_cache_that_cannot_be_written_is_no_failure(
    measured: list[str], choose: Callable[..., str], tmp_path: Path
) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert [choose(SLOW, QUICK) for _ in range(2)] == ["quick"] * 2
    assert measured == ["slow", "quick"] * 2


def test_nothing_is_measured_while_a_graph_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    capturing = [True]
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing[0])
    assert tuning.forbidden(torch.device("cuda"))
    assert not tuning.forbidden(torch.device("cpu"))
    capturing[0] = False
    assert not tuning.forbidden(torch.device("cuda"))
