"""Skipped steps: what is reused, for which branch, and that no block of the trunk runs."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch

import jenga_compile
from jenga_compile import Adaptive, Listed
from jenga_compile.errors import CacheInTheWay, OptionOutOfRange
from jenga_compile.sampler import trunk
from jenga_compile.sampler.adaptive import Change
from tests.sampler.pipelines import ALL, DIFFUSERS_WARNS, Case, hunyuan, hunyuan_true_guidance, wan, wan_two

pytestmark = DIFFUSERS_WARNS
ONLY: dict[str, Any] = {"carving": None, "stages": None, "amplifier": 0.0}
EVERY = Listed(tuple(range(50)))
HALF = Listed((0, *range(1, 50, 2)))


def models(case: Case) -> list[torch.nn.Module]:
    pair = (case.pipe.transformer, getattr(case.pipe, "transformer_2", None))
    return [model for model in pair if model is not None]


def count_blocks(case: Case) -> Counter[str]:
    """How often the first block of each trunk, and the patch embedding and final layer, run."""
    calls: Counter[str] = Counter()

    def counted(name: str) -> Any:
        return lambda *_: calls.update([name])

    for model in models(case):
        lists = trunk.block_lists(model)
        for name in lists:
            for block in model.get_submodule(name):
                block.register_forward_hook(counted("block"))
        model.proj_out.register_forward_hook(counted("last"))
    return calls


@pytest.mark.parametrize("name", ALL)
def test_a_skipped_step_runs_no_block(name: str) -> None:
    case = ALL[name]()
    calls = count_blocks(case)
    case.run(num_inference_steps=20)
    dense = dict(calls)
    with jenga_compile.accelerate(case.pipe, "turbo", **ONLY) as accelerated:
        case.run(num_inference_steps=20)  # the first time, each model is tried without its trunk once
        calls.clear()
        case.run(num_inference_steps=20)
        report = accelerated.report()
    assert report.notes == ()
    assert calls["last"] == dense["last"]
    if name != "wan-two":
        assert calls["block"] == dense["block"] * report.computed // 20
    assert 0 < report.computed < 20


@pytest.mark.parametrize("name", ALL)
def test_what_is_computed_is_what_the_plain_model_computes(name: str) -> None:
    """With a list that has every step, the residual is noted and never used."""
    case = ALL[name]()
    plain = case.run()
    with jenga_compile.accelerate(case.pipe, "turbo", skip=EVERY, **ONLY) as accelerated:
        assert torch.equal(case.run(), plain)
    assert accelerated.report().computed == len(accelerated.report().steps)


@pytest.mark.parametrize("name", ALL)
def test_a_model_without_its_trunk_gives_the_same_on_its_own_residual(name: str) -> None:
    case = ALL[name]()
    given: list[dict[str, Any]] = []
    model = case.pipe.transformer
    hook = model.register_forward_pre_hook(lambda module, args, kwargs: given.append(kwargs), with_kwargs=True)
    case.run()
    hook.remove()
    twins = trunk.make_twins(model)
    assert twins is not None
    with torch.no_grad():
        for call in given[:2]:
            whole = model(**call)[0]
            assert torch.equal(twins.recorded(**call)[0], whole)
            reused = twins.reused(**call)[0]
            assert trunk.relative_difference(reused, whole) < 1e-5
            # It depends on the residual, and on the step that it runs in.
            twins.residual.value = 2 * twins.residual.value
            assert trunk.relative_difference(twins.reused(**call)[0], whole) > 1e-3


@pytest.mark.parametrize("make", [hunyuan, hunyuan_true_guidance, wan])
def test_a_skipped_step_by_hand(make: Any) -> None:
    """The current latents and modulation, and the residual of the branch's last computed step."""
    case = make()
    model = case.pipe.transformer
    calls: list[tuple[dict[str, Any], torch.Tensor]] = []
    shown = trunk.make_twins(model)
    assert shown is not None
    with jenga_compile.accelerate(case.pipe, "base", skip=HALF, carving=None, amplifier=0.0) as accelerated:
        case.run(num_inference_steps=50)
        assert [step.computed for step in accelerated.report().steps][:5] == [True, True, False, True, False]
        model.register_forward_hook(lambda module, args, kwargs, out: calls.append((kwargs, out[0])), with_kwargs=True)
        case.run(num_inference_steps=50)
    branches = 1 if make is hunyuan else 2
    assert len(calls) == 50 * branches
    before = calls.copy()
    with torch.no_grad():
        for branch in range(branches):
            shown.recorded(**before[branches + branch][0])  # step 1
            call, out = before[2 * branches + branch]  # step 2, skipped
            torch.testing.assert_close(shown.reused(**call)[0], out, rtol=1e-5, atol=1e-5)
            assert not torch.allclose(model(**call)[0], out, rtol=1e-3, atol=1e-3)


def test_each_transformer_has_residuals_of_its_own() -> None:
    """Wan 2.2 goes over from one model to the other in the middle: the first step of each is computed."""
    case = wan_two()
    calls: list[int] = []
    for number, model in enumerate(models(case)):
        model.blocks[0].register_forward_hook(lambda *_, number=number: calls.append(number))
    with jenga_compile.accelerate(case.pipe, "base", skip=HALF, carving=None, amplifier=0.0) as accelerated:
        case.run(num_inference_steps=50)
    assert set(calls) == {0, 1}
    assert accelerated.report().notes == ()


def test_a_few_steps_are_all_computed() -> None:
    case = hunyuan()
    with jenga_compile.accelerate(case.pipe, "base", **ONLY) as accelerated:
        case.run(num_inference_steps=5)
    assert accelerated.report().computed == 5


@pytest.mark.parametrize("make", [hunyuan, hunyuan_true_guidance, wan])
def test_a_threshold_of_zero_skips_nothing(make: Any) -> None:
    case = make()
    plain = case.run(num_inference_steps=20)
    with jenga_compile.accelerate(case.pipe, "base", skip=Adaptive(0.0), carving=None, amplifier=0.0):
        assert torch.equal(case.run(num_inference_steps=20), plain)


def test_a_larger_threshold_skips_more() -> None:
    case = hunyuan()
    computed = []
    for threshold in (0.0, 0.02, 0.1, 0.5, 1e9):
        with jenga_compile.accelerate(case.pipe, "turbo", skip=Adaptive(threshold), carving=None, amplifier=0.0) as run:
            case.run(num_inference_steps=30)
            computed.append(run.report().computed)
    assert computed[0] == 30
    assert computed == sorted(computed, reverse=True)
    assert len(set(computed)) > 2
    assert computed[-1] == 4, "two computed steps of each stage: the rate of change needs them"


def test_an_adaptive_run_computes_the_first_step_at_each_resolution() -> None:
    case = hunyuan()
    with jenga_compile.accelerate(case.pipe, "three_stage", skip=Adaptive(1e9), carving=None, amplifier=0.0) as run:
        case.run(num_inference_steps=30)
    computed = [step.index for step in run.report().steps if step.computed]
    assert computed == [0, 1, 10, 11, 16, 17]


def test_the_change_that_skipping_would_miss() -> None:
    """x goes 0, 1, 2, ..., and v is 1 + x / 10: a step changes v by 0.1 from there on."""
    change = Change(0.25)
    decided = []
    for step in range(8):
        x, v = torch.full((4,), float(step)), torch.full((4,), 1 + step / 10)
        small = change.is_small(x)
        decided.append(small)
        if not small:
            change.computed(x, v)
    # After v = 1.1: misses 0.1 / 1.1, then twice that, then three times, which is over 0.25.
    assert decided == [False, False, True, True, False, True, True, True]


def test_a_list_of_ones_own() -> None:
    case = hunyuan()
    with jenga_compile.accelerate(case.pipe, "base", skip=Listed((0, 10, 30)), carving=None, amplifier=0.0) as run:
        case.run(num_inference_steps=50)
    assert [step.index for step in run.report().steps if step.computed] == [0, 10, 30]


@pytest.mark.parametrize("skip", ["some", 0.5, (0, 1)])
def test_what_is_no_way_to_skip_is_refused(skip: Any) -> None:
    with pytest.raises(OptionOutOfRange, match="skip="):
        jenga_compile.accelerate(hunyuan().pipe, "turbo", skip=skip)


def test_a_cache_of_diffusers_is_in_the_way() -> None:
    from diffusers import FirstBlockCacheConfig

    case = hunyuan()
    case.pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    with (
        jenga_compile.accelerate(case.pipe, "base", **ONLY),
        pytest.raises(CacheInTheWay, match="transformer of this pipeline has diffusers' FirstBlockCacheConfig enabled"),
    ):
        case.run()
    case.pipe.transformer.disable_cache()
    with jenga_compile.accelerate(case.pipe, "base", **ONLY):
        case.run()


def test_unknown_blocks_reuse_the_output_and_say_so() -> None:
    case = hunyuan()
    case.pipe.transformer.something_else = torch.nn.ModuleList([torch.nn.Identity()])
    with jenga_compile.accelerate(case.pipe, "base", **ONLY) as accelerated:
        case.run(num_inference_steps=20)
    report = accelerated.report()
    assert "reuse the model's output: the blocks of a HunyuanVideoTransformer3DModel are not known" in str(report)
    assert 0 < report.computed < 20
    assert min(step.flops for step in report.steps if step.flops is not None) == 0


@pytest.mark.parametrize("place", [None, 0, 1])
def test_the_videos_tokens_are_found_in_what_blocks_return(place: int | None) -> None:
    """Alone, before the text, or after it."""

    class Block(torch.nn.Module):
        def forward(self, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor) -> Any:
            video, text = hidden_states * 3, encoder_hidden_states + 1
            return video if place is None else (video, text) if place == 0 else (text, video)

    residual = trunk.Residual()
    video, text = torch.randn(1, 6, 4), torch.randn(1, 3, 4)
    trunk.Leave(trunk.Enter(Block(), residual), residual)(video, text)
    assert residual.value is not None
    torch.testing.assert_close(residual.value, 2 * video)
    made = trunk.Reuse(residual)(hidden_states=video, encoder_hidden_states=text)
    torch.testing.assert_close(made if place is None else made[place], 3 * video)
    assert place is None or torch.equal(made[1 - place], text)


def test_blocks_that_do_more_than_add_are_found_out() -> None:
    """What a block hands to the final layer beside the tokens is lost without it: the output is another."""
    case = hunyuan()
    model, handed = case.pipe.transformer, []
    model.transformer_blocks[0].register_forward_hook(lambda *_: handed.append(1.0))
    model.proj_out.register_forward_hook(lambda module, args, out: out + handed.pop() if handed else out)
    plain = case.run(num_inference_steps=20)
    with jenga_compile.accelerate(case.pipe, "base", **ONLY) as accelerated:
        case.run(num_inference_steps=20)
        assert "without its blocks, a HunyuanVideoTransformer3DModel gives another output" in str(accelerated.report())
        assert 0 < accelerated.report().computed < 20
    assert torch.equal(case.run(num_inference_steps=20), plain)


def test_blocks_that_the_rest_cannot_do_without_are_found_out() -> None:
    case = hunyuan()
    model, handed = case.pipe.transformer, []
    model.transformer_blocks[0].register_forward_hook(lambda *_: handed.append(1.0))
    model.proj_out.register_forward_hook(lambda module, args, out: out + handed.pop())
    with jenga_compile.accelerate(case.pipe, "base", **ONLY) as accelerated:
        case.run(num_inference_steps=20)
    assert "does not run without its blocks: pop from empty list" in str(accelerated.report())
