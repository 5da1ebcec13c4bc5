"""Acceleration beside what users do to a pipeline: compiling, offloading, LoRA, callbacks, batches."""

from __future__ import annotations

import copy
import dataclasses
import gc
import weakref
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

import jenga_compile
from jenga_compile.errors import SchedulerUnfit
from tests.sampler.pipelines import DIFFUSERS_WARNS, Case, cogvideox, hunyuan, hunyuan_true_guidance, ltx, wan
from tests.sampler.test_amplifier import LARGE

pytestmark = [*DIFFUSERS_WARNS, pytest.mark.filterwarnings("ignore:Dynamo detected a call to a:UserWarning")]
OFF: dict[str, Any] = {"stages": None, "carving": None, "skip": None, "amplifier": 0.0}
DENSE: dict[str, Any] = {"carving": None, "amplifier": 0.0}
CARVED: dict[str, Any] = {"min_blocks": 2, "inner": "eager", "fullgraph": True}
STEPS: dict[str, Any] = {"num_inference_steps": 20}


@pytest.fixture(autouse=True)
def new_dynamo() -> None:
    torch._dynamo.reset()


def accelerated(case: Case, *switches: dict[str, Any], **call: Any) -> torch.Tensor:
    merged = {name: value for part in switches for name, value in part.items()}
    with jenga_compile.accelerate(case.pipe, merged.pop("preset", "turbo"), **merged):
        return case.run(**{**STEPS, **call})


@pytest.mark.parametrize("how", ["module", "in place"])
@pytest.mark.parametrize("switches", [OFF, DENSE, {**CARVED}], ids=["off", "dense", "carved"])
def test_a_transformer_that_is_compiled_already(how: str, switches: dict[str, Any]) -> None:
    case = hunyuan()
    size = LARGE if switches.get("min_blocks") else {}
    expected = accelerated(case, switches, **size)
    plain = case.run(**STEPS)
    torch._dynamo.reset()
    if how == "module":
        case.pipe.transformer = torch.compile(case.pipe.transformer, backend="eager")
    else:
        case.pipe.transformer.compile(backend="eager")
    before = (case.pipe.transformer, type(case.pipe.transformer), sorted(vars(case.pipe.transformer)))
    torch.testing.assert_close(accelerated(case, switches, **size), expected, rtol=1e-4, atol=1e-4)
    assert before == (case.pipe.transformer, type(case.pipe.transformer), sorted(vars(case.pipe.transformer)))
    torch.testing.assert_close(case.run(**STEPS), plain, rtol=1e-4, atol=1e-4)


def test_a_second_run_compiles_nothing() -> None:
    """And the first one graph a resolution, and one more for steps that are skipped."""
    case = hunyuan()
    with jenga_compile.accelerate(case.pipe, "three_stage", **CARVED) as handle:
        counters.clear()
        first = case.run(**STEPS, **LARGE)
        assert counters["stats"]["unique_graphs"] == 6
        assert sum(step.compiled for step in handle.report().steps) <= 6
        second = case.run(**STEPS, **LARGE)
        assert counters["stats"]["unique_graphs"] == 6
        assert not any(step.compiled for step in handle.report().steps)
    assert torch.equal(first, second)


def test_compiled_in_one_graph_it_is_what_it_is_in_many() -> None:
    """Keeping everything, carved runs with stages and skipped steps are the dense ones but for rounding."""
    for make in (hunyuan_true_guidance, wan):
        case = make()
        dense = accelerated(case, DENSE, **LARGE)
        kept = accelerated(case, CARVED, {"keep": 1.0, "cutoff": 0.0, "amplifier": 0.0}, **LARGE)
        torch.testing.assert_close(kept, dense, rtol=1e-3, atol=1e-3)


class CountingHook:
    """What offloading hangs on a model: it runs before and after each of its calls."""

    no_grad = False

    def __init__(self) -> None:
        self.before = self.after = 0

    def pre_forward(self, module: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        self.before += 1
        return args, kwargs

    def post_forward(self, module: Any, output: Any) -> Any:
        self.after += 1
        return output

    def init_hook(self, module: Any) -> Any:
        return module

    def detach_hook(self, module: Any) -> Any:
        return module


@pytest.mark.parametrize("switches", [OFF, DENSE], ids=["off", "dense"])
def test_offloading_surrounds_every_call(switches: dict[str, Any]) -> None:
    """Also those of skipped steps, and it is hung on anew after every run, as diffusers does."""
    from accelerate.hooks import add_hook_to_module, remove_hook_from_module

    case = hunyuan()
    expected = accelerated(case, switches)
    hook = CountingHook()
    with jenga_compile.accelerate(case.pipe, "turbo", **switches):
        add_hook_to_module(case.pipe.transformer, hook)
        assert torch.equal(case.run(**STEPS), expected)
        assert hook.before == hook.after
        assert hook.before in (20, 21)  # one call more is the trial without the trunk
        remove_hook_from_module(case.pipe.transformer)
        add_hook_to_module(case.pipe.transformer, hook)
        assert torch.equal(case.run(**STEPS), expected)
    assert case.pipe.transformer._hf_hook is hook
    remove_hook_from_module(case.pipe.transformer)


@pytest.mark.parametrize("level", ["block_level", "leaf_level"])
def test_group_offloading(level: str) -> None:
    from diffusers.hooks import apply_group_offloading

    case = wan()
    expected = accelerated(case, DENSE)
    cpu = torch.device("cpu")
    blocks = {"num_blocks_per_group": 1} if level == "block_level" else {}
    apply_group_offloading(case.pipe.transformer, cpu, cpu, offload_type=level, **blocks)
    assert torch.equal(accelerated(case, DENSE), expected)


def add_lora(case: Case, seed: int) -> None:
    from peft import LoraConfig

    model = case.pipe.transformer
    targets = ["to_q", "to_v", "proj_out", "to_out.0"]
    model.add_adapter(LoraConfig(r=2, lora_alpha=4, target_modules=targets, init_lora_weights=False), f"lora{seed}")
    random = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if f"lora{seed}" in name:
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=random)


@pytest.mark.parametrize("switches", [OFF, DENSE, CARVED], ids=["off", "dense", "carved"])
@pytest.mark.parametrize("make", [hunyuan, wan])
def test_lora_before_and_after(make: Any, switches: dict[str, Any]) -> None:
    size = LARGE if switches is CARVED else {}
    before = make()
    plain = accelerated(before, switches, **size)
    add_lora(before, 1)
    expected = accelerated(before, switches, **size)
    assert not torch.allclose(plain, expected, rtol=1e-2, atol=1e-2)
    after = make()
    with jenga_compile.accelerate(after.pipe, "turbo", **switches):
        assert torch.equal(after.run(**STEPS, **size), plain)
        add_lora(after, 1)
        torch.testing.assert_close(after.run(**STEPS, **size), expected, rtol=1e-5, atol=1e-5)
        after.pipe.transformer.disable_adapters()
        torch.testing.assert_close(after.run(**STEPS, **size), plain, rtol=1e-5, atol=1e-5)


def test_a_callback_may_change_the_latents() -> None:
    case = hunyuan()

    def callback(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        return {"latents": tensors["latents"] * 0.9}

    plain = case.run(callback_on_step_end=callback)
    assert torch.equal(accelerated(case, OFF, callback_on_step_end=callback, num_inference_steps=6), plain)
    changed = accelerated(case, DENSE, callback_on_step_end=callback)
    assert not torch.equal(changed, accelerated(case, DENSE))


def test_an_interrupted_run_says_that_it_is_no_video_yet() -> None:
    case = hunyuan()

    def callback(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        pipe._interrupt = index == 1
        return {}

    with jenga_compile.accelerate(case.pipe, "turbo", **DENSE) as handle:
        case.run(callback_on_step_end=callback)
        assert "ended after 2 of 6 steps, before full size" in str(handle.report())
        whole = case.run()
    assert torch.equal(accelerated(case, DENSE, num_inference_steps=6), whole)


@pytest.mark.parametrize("make", [hunyuan, wan, cogvideox, ltx])
@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_every_prompt_of_a_batch_is_its_own_run(make: Any, guidance: float) -> None:
    """A batch of two prompts with a generator each is the two runs side by side."""
    case = make()
    embedded = [name for name in case.call if "embeds" in name or "mask" in name]
    other = {name: case.call[name] if "mask" in name else case.call[name].flip(-1) for name in embedded}
    alone = [
        accelerated(case, DENSE, guidance_scale=guidance, seed=0),
        accelerated(dataclasses.replace(case, call=case.call | other), DENSE, guidance_scale=guidance, seed=1),
    ]
    both = {name: torch.cat([case.call[name], other[name]]) for name in embedded}
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    arguments = {
        "output_type": "latent",
        "return_dict": False,
        **case.call,
        **both,
        **STEPS,
        "guidance_scale": guidance,
    }
    with jenga_compile.accelerate(case.pipe, "turbo", **DENSE):
        made = case.pipe(**arguments, generator=generators)[0]
    torch.testing.assert_close(made, torch.cat(alone), rtol=1e-4, atol=1e-4)


def test_outputs_come_as_they_are_asked_for() -> None:
    case = hunyuan()
    with jenga_compile.accelerate(case.pipe, "turbo", **DENSE):
        generator = torch.Generator().manual_seed(0)
        made = case.pipe(**case.call, num_inference_steps=6, output_type="latent", generator=generator)
        assert torch.equal(made.frames, case.run())


def test_no_residual_outlives_its_run() -> None:
    from jenga_compile.sampler import runner

    kept: list[weakref.ref[torch.Tensor]] = []
    owned = runner.Runner._owned

    def noted(self: Any, tensor: torch.Tensor) -> torch.Tensor:
        kept.append(weakref.ref(owned(self, tensor)))
        return owned(self, tensor)

    class Stopped(Exception):
        pass

    def callback(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if index == 4:
            raise Stopped
        return {}

    case = hunyuan()
    with pytest.MonkeyPatch.context() as patch, jenga_compile.accelerate(case.pipe, "turbo", **DENSE):
        patch.setattr(runner.Runner, "_owned", noted)
        case.run()
        with pytest.raises(Stopped):
            case.run(callback_on_step_end=callback)
        gc.collect()
        assert kept
        assert [reference() for reference in kept if reference() is not None] == []


def test_parts_may_be_replaced_while_it_is_accelerated() -> None:
    case, other = hunyuan(), hunyuan()
    for parameter in other.pipe.transformer.parameters():
        parameter.data = parameter.data * 0.9
    expected = accelerated(other, DENSE)
    with jenga_compile.accelerate(case.pipe, "turbo", **DENSE):
        case.run(**STEPS)
        case.pipe.transformer = other.pipe.transformer
        case.pipe.scheduler = copy.deepcopy(other.pipe.scheduler)
        assert torch.equal(case.run(**STEPS), expected)


def test_other_precision() -> None:
    case = hunyuan()
    case.pipe.transformer.to(torch.bfloat16)
    made = accelerated(case, DENSE)
    assert made.isfinite().all()
    assert jenga_compile.report().notes == ()


def test_a_copy_of_a_pipeline_is_its_own() -> None:
    case, other = hunyuan(), hunyuan()
    plain = case.run()
    with jenga_compile.accelerate(case.pipe, "turbo", **DENSE):
        copied = copy.copy(case.pipe)
        copied.transformer = other.pipe.transformer
        calls: list[int] = []
        copied.transformer.register_forward_hook(lambda *_: calls.append(1))
        assert torch.equal(dataclasses.replace(case, pipe=copied).run(), plain)
        assert len(calls) == 6


def test_a_copy_of_a_scheduler_is_no_part_of_the_run() -> None:
    """Some pipelines step one for each frame or each stream."""
    case = hunyuan()
    expected = accelerated(case, DENSE)

    def callback(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        beside = copy.deepcopy(pipe.scheduler)
        beside.set_timesteps(3)
        beside.step(tensors["latents"], beside.timesteps[0], tensors["latents"])
        return {}

    assert torch.equal(accelerated(case, DENSE, callback_on_step_end=callback), expected)


def test_a_scheduler_that_is_replaced_is_looked_at_again() -> None:
    import diffusers

    case = hunyuan()
    with jenga_compile.accelerate(case.pipe, "base", **DENSE):
        case.pipe.scheduler = diffusers.FlowMatchHeunDiscreteScheduler()
        with pytest.raises(SchedulerUnfit, match="2 times a step"):
            case.run()


def test_removing_twice_leaves_a_newer_acceleration_alone() -> None:
    case = hunyuan()
    first = jenga_compile.accelerate(case.pipe, "base", **DENSE)
    first.remove()
    with jenga_compile.accelerate(case.pipe, "turbo", **DENSE) as second:
        first.remove()
        case.run()
        assert len(second.report().steps) == 6


def test_a_carved_model_is_freed() -> None:
    case = hunyuan()
    accelerated(case, CARVED, **LARGE)
    model = weakref.ref(case.pipe.transformer)
    del case
    gc.collect()
    assert model() is None
