"""The judge: it scores by the labels it is given, survives saving, and evaluates any generator."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jenga_compile.zoo.judge import Judge, accuracy, ceiling, evaluate, load_judge, save_judge, train_judge
from jenga_compile.zoo.vocabulary import LABEL_NAMES, classes


class Oracle(nn.Module):
    """Reads the label index that the test wrote into the first pixel, for every head."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(()))

    def forward(self, clip: Tensor) -> dict[str, Tensor]:
        index = clip[:, 0, 0, 0, 0].round().long()
        return {name: F.one_hot(index, len(classes(name))).float() for name in LABEL_NAMES}


def test_accuracy_counts_hits() -> None:
    clips = torch.zeros(8, 3, 2, 4, 4)
    clips[:, 0, 0, 0, 0] = torch.tensor([0, 1, 2, 3, 0, 1, 2, 3])
    right = torch.tensor([0, 1, 2, 3, 0, 1, 3, 0])
    scores = accuracy(Oracle(), clips, dict.fromkeys(LABEL_NAMES, right))  # type: ignore[arg-type]
    for name in LABEL_NAMES:
        assert scores[name]["hits"] == 6
        assert scores[name]["top1"] == 0.75
        assert scores[name]["chance"] == pytest.approx(1 / len(classes(name)))
    assert "top5" not in scores["texture"]


def test_a_judge_trains_saves_and_evaluates(tmp_path: Path) -> None:
    judge = train_judge(torch.device("cpu"), seconds=1.0, batch=4)
    save_judge(judge, tmp_path / "judge.safetensors")
    again = load_judge(tmp_path / "judge.safetensors")
    clip = torch.randn(1, 3, 16, 64, 64)
    with torch.no_grad():
        for name, logits in judge(clip).items():
            torch.testing.assert_close(again(clip)[name], logits, rtol=0.05, atol=0.05)

    asked: list[str] = []

    def gray(prompts: Sequence[str]) -> Tensor:
        asked.extend(prompts)
        return torch.full((len(prompts), 16, 64, 64, 3), 128, dtype=torch.uint8)

    scores = evaluate(judge, gray, n=6, batch=4, split="unseen")
    assert len(asked) == 6
    assert all("background" in prompt for prompt in asked)
    assert scores["object"]["clips"] == ceiling(judge, 6, seed=0)["object"]["clips"] == 6


def test_a_judge_is_small() -> None:
    assert sum(parameter.numel() for parameter in Judge().parameters()) < 2.5e6
