"""The toys themselves: each computes, every input counts, and its float64 truth is one."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import GraphModule
from torch.utils._pytree import tree_flatten, tree_unflatten

from jenga_compile.grid import BLOCK
from tests.toys import TOYS, Toy

UNITS = 32
"""Units in the last place by which a whole model in float32 may miss its float64 truth."""

pytestmark = pytest.mark.filterwarnings("ignore:In CPU autocast")  # Mochi asks for float32 there


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Toys are too small to share: threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=TOYS)
def toy(request: pytest.FixtureRequest) -> Toy:
    return TOYS[request.param]()


def test_a_toy_has_some_blocks_and_none_of_its_sizes_is_round(toy: Toy) -> None:
    out = toy.run()
    assert out.isfinite().all()
    assert out.dtype == torch.float32
    frames, height, width = toy.grid
    assert height != width
    assert not toy.carved or frames * height * width > BLOCK
    assert frames * height * width % BLOCK


def test_every_input_counts(toy: Toy) -> None:
    before = toy.run()
    leaves, structure = tree_flatten(toy.inputs)
    for place, leaf in enumerate(leaves):
        if isinstance(leaf, Tensor):
            changed = [*leaves[:place], different(leaf), *leaves[place + 1 :]]
            after = dataclasses.replace(toy, inputs=tree_unflatten(changed, structure)).run()
            assert after.isfinite().all()
            assert not torch.allclose(after, before, rtol=0, atol=1e-5), f"tensor {place} of the inputs changes nothing"


def test_it_matters_where_the_carved_attention_looks(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    attend = F.scaled_dot_product_attention

    def look_everywhere(query: Tensor, key: Tensor, value: Tensor, *rest: Any, **options: Any) -> Tensor:
        out = attend(query, key, value, *rest, **options)
        self_attention = query.shape[2] == key.shape[2] > BLOCK
        return out.mean(2, keepdim=True).expand_as(out) if self_attention else out

    before = toy.run()
    monkeypatch.setattr(F, "scaled_dot_product_attention", look_everywhere)
    change = (toy.run() - before).abs().max() / before.abs().max()
    assert change > 0.03 if toy.carved else change == 0


@pytest.mark.parametrize(("at", "far"), [(0, -1), (-1, 0)])
def test_both_ends_of_a_video_see_each_other_and_no_other_video(toy: Toy, at: int, far: int) -> None:
    before = toy.run()
    latents = toy.inputs["hidden_states"].clone()
    latents[at].flatten()[at] += 10
    after = dataclasses.replace(toy, inputs={**toy.inputs, "hidden_states": latents}).run()
    change = (after - before).abs()
    assert change[at].flatten()[far] > 1e-5
    if len(latents) > 1:
        assert change[far].max() < 1e-5


def test_what_a_mask_hides_does_not_count(toy: Toy) -> None:
    inputs = copy.deepcopy(toy.inputs)
    masks = [name for name, value in inputs.items() if isinstance(value, Tensor) and value.dtype == torch.bool]
    for name in masks:
        inputs[name.replace("attention_mask", "hidden_states").removesuffix("_mask")][~inputs[name]] += 10
    torch.testing.assert_close(dataclasses.replace(toy, inputs=inputs).run(), toy.run(), rtol=0, atol=1e-5)


def test_float64_is_close_and_leaves_the_toy_as_it_was(toy: Toy) -> None:
    before = toy.run()
    truth = toy.to(torch.float64).run()
    assert truth.dtype == torch.float64
    budget = UNITS * torch.finfo(toy.inside).eps * float(before.abs().max())
    torch.testing.assert_close(before.double(), truth, rtol=0, atol=budget)
    assert torch.equal(toy.run(), before)


@pytest.mark.parametrize("name", TOYS)
def test_depth_and_size_are_free(name: str) -> None:
    build = TOYS[name]
    shallow, deep = build(layers=1), build(layers=3, height=20, width=28)
    assert deep.grid[1:] == (10, 14)
    assert len(deep.model.state_dict()) > len(shallow.model.state_dict())
    assert deep.run().isfinite().all()
    assert shallow.run().isfinite().all()


def test_mochi_is_one_graph_where_dynamo_may_follow_shapes_that_depend_on_data() -> None:
    toy = TOYS["mochi"](layers=1)
    assert toy.how == "compile"
    assert graphs(toy) > 1
    assert graphs(toy, fullgraph=True) == 1
    with toy.settings():
        assert graphs(toy) == 1


def test_a_block_of_hunyuan15_is_a_graph_for_all_layers() -> None:
    toy = TOYS["hunyuan15"](layers=2)
    assert toy.how == "blocks"
    assert graphs(toy) == graphs(TOYS["hunyuan15"](layers=3))
    with pytest.raises(torch._dynamo.exc.Unsupported):
        graphs(toy, fullgraph=True)


def graphs(toy: Toy, fullgraph: bool = False) -> int:
    """Graphs that Dynamo makes of a call."""
    found: list[GraphModule] = []

    def backend(gm: GraphModule, example_inputs: list[Tensor]) -> GraphModule:
        found.append(gm)
        return gm

    torch._dynamo.reset()
    toy.run(torch.compile(toy.model, backend=backend, fullgraph=fullgraph))
    return len(found)


def different(tensor: Tensor) -> Tensor:
    """Other values that are as valid: positions other distances apart, a mask that hides one token less."""
    changed = tensor.clone()
    if tensor.dtype == torch.bool:
        changed[0, -1] = True
    elif tensor.is_floating_point():
        changed += torch.randn(tensor.shape, generator=torch.Generator().manual_seed(1))
    else:
        changed = changed * 2 + 1
    return changed
