"""Training: it learns, it resumes to the bit, and its fast modules compute what diffusers' do."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from jenga_compile.zoo import train
from jenga_compile.zoo.model import SPRITE_DIT, TEXT_TOKENS, TINY_DIT, build_transformer
from jenga_compile.zoo.recipe import SMOKE
from jenga_compile.zoo.trainable import Ema, build_optimizers, make_trainable


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """The smoke model's operations are too small to share between threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def smoke(folder: Path, *options: str) -> train.Trainer:
    return train.main(["--smoke", "--device", "cpu", "--out", str(folder), *options])


def test_a_run_learns_and_resumes_to_the_bit(tmp_path: Path) -> None:
    whole = smoke(tmp_path / "whole")
    smoke(tmp_path / "parts", "--max-steps", "6")
    parts = smoke(tmp_path / "parts", "--resume", str(tmp_path / "parts"))

    assert whole.step == parts.step == SMOKE.total_steps
    for name, value in whole.transformer.state_dict().items():
        assert torch.equal(value, parts.transformer.state_dict()[name]), name
    assert all(torch.equal(a, b) for a, b in zip(whole.ema.average, parts.ema.average, strict=True))

    facts = json.loads((tmp_path / "parts" / "training.json").read_text())
    assert facts["finished"]
    assert facts["clips"] == whole.samples
    before, after = parts.losses[0][2], parts.losses[-1][2]  # means of steps 1-6 and of the steps since
    assert after < before
    for file in ("transformer/config.json", "scheduler/scheduler_config.json", "samples.png", "checkpoint.pt"):
        assert (tmp_path / "parts" / file).is_file()


@pytest.fixture
def restless() -> Any:
    """A tiny transformer without the zero initialisation, so that every path carries signal."""
    torch.manual_seed(0)
    transformer = build_transformer(TINY_DIT)
    for parameter in transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return transformer


def test_make_trainable_keeps_the_function(restless: Any) -> None:
    inputs = {
        "hidden_states": torch.randn(2, 3, 4, 16, 24),
        "timestep": torch.tensor([100.0, 700.0]),
        "encoder_hidden_states": torch.randn(2, TEXT_TOKENS, 384),
        "encoder_attention_mask": torch.ones(2, TEXT_TOKENS),
        "pooled_projections": torch.randn(2, 384),
        "return_dict": False,
    }
    fast = make_trainable(copy.deepcopy(restless))
    assert list(fast.state_dict()) == list(restless.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(fast(**inputs)[0], restless(**inputs)[0], rtol=1e-4, atol=1e-5)


def test_a_fresh_transformer_predicts_zero() -> None:
    transformer = build_transformer(TINY_DIT)
    with torch.no_grad():
        velocity = transformer(
            hidden_states=torch.randn(1, 3, 4, 16, 16),
            timestep=torch.tensor([500.0]),
            encoder_hidden_states=torch.randn(1, TEXT_TOKENS, 384),
            encoder_attention_mask=torch.ones(1, TEXT_TOKENS),
            pooled_projections=torch.randn(1, 384),
            return_dict=False,
        )[0]
    assert not velocity.any()


def test_the_shipped_model_fits() -> None:
    with torch.device("meta"):
        transformer = build_transformer(SPRITE_DIT)
    count = sum(parameter.numel() for parameter in transformer.parameters())
    assert 2 * count <= 45e6  # bytes in fp16
    assert SPRITE_DIT.video_tokens(16, 64) == 2048
    assert sum(SPRITE_DIT.rope_axes_dim) == SPRITE_DIT.attention_head_dim


def test_optimizers_share_the_parameters(restless: Any) -> None:
    muon, adamw = build_optimizers(restless, muon_lr=1e-3, adamw_lr=1e-3, weight_decay=0.0, fused=False)
    counts = [sum(p.numel() for p in optimizer.param_groups[0]["params"]) for optimizer in (muon, adamw)]
    assert sum(counts) == sum(p.numel() for p in restless.parameters())
    assert all(p.ndim == 2 for p in muon.param_groups[0]["params"])


def test_ema_is_the_weighted_mean() -> None:
    gamma, steps = 3.0, 50
    parameter = torch.nn.Parameter(torch.zeros(()))
    ema = Ema([parameter], gamma)
    for step in range(1, steps + 1):
        parameter.data.fill_(float(step))
        ema.update(step)
    weights = [(1 - (1 - 1 / t) ** (gamma + 1)) * ((t / steps) ** (gamma + 1)) for t in range(1, steps + 1)]
    expected = sum(w * t for t, w in enumerate(weights, 1))
    assert sum(weights) == pytest.approx(1.0)
    assert ema.average[0].item() == pytest.approx(expected, rel=1e-4)


def test_times_cover_the_path_and_lean_to_noise() -> None:
    trainer = train.Trainer(SMOKE, torch.device("cpu"), None, compiled=False)
    times = trainer._times(4096)
    assert bool(((times > 0) & (times < 1)).all())
    assert times.median().item() == pytest.approx(0.75, abs=0.03)
    assert times.min() < 0.03
    assert times.max() > 0.99
