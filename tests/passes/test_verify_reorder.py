"""The verifier of reordered graphs: it accepts what hoisting makes, and sees every kind of wrong rewrite."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.fx import Graph, Node

from jenga_compile.passes.reorder.verify import verify_reorder
from jenga_compile.passes.site import CARVED, CURVE_INDEX, CUTS, REORDERED
from jenga_compile.passes.sizes import under, valuations
from tests.passes.aten_graphs import Stopped
from tests.passes.test_hoist_reorder import TOYS, stopped

aten = torch.ops.aten
MODEL = "hunyuan"


def faults(stopped: Stopped) -> str | None:
    with under(valuations(stopped.gm.graph)[0]):
        return verify_reorder(stopped.gm.graph)


@pytest.mark.parametrize("decompose", [False, True])
def test_a_hoisted_graph_is_in_order(decompose: bool) -> None:
    assert faults(stopped(TOYS[MODEL](), None, decompose=decompose)) is None


def indices(graph: Graph, inverse: bool) -> list[Node]:
    return [node for node in graph.find_nodes(op="call_function", target=CURVE_INDEX) if node.args[4] is inverse]


def gathers(graph: Graph, inverse: bool) -> list[Node]:
    return [user for index in indices(graph, inverse) for user in index.users]


def sites(graph: Graph) -> list[Node]:
    return list(graph.find_nodes(op="call_function", target=CARVED))


def drop(node: Node) -> None:
    node.replace_all_uses_with(node.args[0])  # type: ignore[arg-type]
    node.graph.erase_node(node)


def drop_first_in(graph: Graph) -> None:
    drop(gathers(graph, False)[0])


def drop_last_in(graph: Graph) -> None:
    drop(gathers(graph, False)[-1])


def drop_out(graph: Graph) -> None:
    drop(gathers(graph, True)[0])


def turn_round(graph: Graph) -> None:
    index = indices(graph, True)[0]
    index.update_arg(4, False)


def swap_rows_and_columns(graph: Graph) -> None:
    index = indices(graph, False)[0]
    index.update_arg(1, index.args[2])
    index.update_arg(2, 8)


def other_curve(graph: Graph) -> None:
    sites(graph)[0].update_arg(8, "sliced")


def other_cuts(graph: Graph) -> None:
    sites(graph)[0].update_arg(CUTS, [2])


def forget_that_a_site_is_reordered(graph: Graph) -> None:
    sites(graph)[-1].update_arg(REORDERED, False)


def gather_twice(graph: Graph) -> None:
    gather = gathers(graph, False)[0]
    with graph.inserting_after(gather):
        again = graph.call_function(gather.target, gather.args)  # type: ignore[arg-type]
    again.meta = dict(gather.meta)
    gather.replace_all_uses_with(again)
    again.update_arg(0, gather)


def move_where_the_video_starts(graph: Graph) -> None:
    sites(graph)[0].update_arg(7, 12)


def slice_into_the_video(graph: Graph) -> None:
    """The slice that takes the text from the joint tokens takes one video token more."""
    for node in graph.find_nodes(op="call_function", target=aten.slice.Tensor):
        source, dim, first, _ = node.args
        assert isinstance(source, Node)
        if first == -12 and source.meta["val"].shape[dim] == 492:
            node.update_arg(2, -13)
            node.meta["val"] = aten.slice.Tensor(source.meta["val"], *node.args[1:])
            return
    raise AssertionError("no such slice")


def join_the_other_way_round(graph: Graph) -> None:
    joint = next(
        node
        for node in graph.find_nodes(op="call_function", target=aten.cat.default)
        if node.meta["val"].shape[1] == 492
    )
    joint.update_arg(0, list(reversed(joint.args[0])))  # type: ignore[call-overload]


def keys_of_another_tensor(graph: Graph) -> None:
    site = sites(graph)[0]
    gather = gathers(graph, False)[0]
    key = site.args[1]
    assert isinstance(key, Node)
    with graph.inserting_before(site):
        fresh = graph.call_function(aten.alias.default, (key,))
        flipped = graph.call_function(aten.roll.default, (fresh, [1], [2]))
    fresh.meta, flipped.meta = dict(key.meta), dict(key.meta)
    site.update_arg(1, flipped)
    assert gather is not None


def softmax_over_tokens(graph: Graph) -> None:
    site = sites(graph)[0]
    with graph.inserting_after(site):
        mixed = graph.call_function(aten._softmax.default, (site, 2, False))
    mixed.meta = dict(site.meta)
    site.replace_all_uses_with(mixed, delete_user_cb=lambda user: user is not mixed)


def return_permuted_tokens(graph: Graph) -> None:
    (outputs,) = graph.output_node().args
    graph.output_node().args = ([*outputs, sites(graph)[0]],)  # type: ignore[misc]


def add_in_the_models_order(graph: Graph) -> None:
    site = sites(graph)[0]
    query = site.args[0]
    assert isinstance(query, Node)
    with graph.inserting_after(site):
        like = graph.call_function(aten.rand_like.default, (site,))
        with graph.inserting_after(like):
            summed = graph.call_function(aten.add.Tensor, (site, like))
    like.meta, summed.meta = dict(site.meta), dict(site.meta)
    site.replace_all_uses_with(summed, delete_user_cb=lambda user: user not in (summed, like))


SEEDED: dict[str, tuple[Callable[[Graph], Any], str]] = {
    "the first gather in is missing": (drop_first_in, "in place"),
    "the last gather in is missing": (drop_last_in, ""),
    "the gather out is missing": (drop_out, ""),
    "the gather out goes in": (turn_round, "permuted already"),
    "rows and columns are swapped": (swap_rows_and_columns, ""),
    "the site is on another curve": (other_curve, "not in the order of the site|in one operand"),
    "the curve starts anew elsewhere": (other_cuts, "where another operand has one run"),
    "a site takes reordered tokens for unordered": (forget_that_a_site_is_reordered, "in one operand"),
    "gathered twice": (gather_twice, "permuted already"),
    "the video starts elsewhere": (move_where_the_video_starts, ""),
    "a slice reaches into the video": (slice_into_the_video, "cut the run"),
    "pieces are joined in another order": (join_the_other_way_round, ""),
    "keys are rolled": (keys_of_another_tensor, "mixes permuted tokens"),
    "tokens are mixed": (softmax_over_tokens, "mixes permuted tokens"),
    "permuted tokens leave the graph": (return_permuted_tokens, "leave the graph"),
    "added to tokens in the model's order": (add_in_the_models_order, "not known to treat tokens alike"),
}


@pytest.mark.parametrize("name", SEEDED)
def test_a_wrong_rewrite_is_seen(name: str) -> None:
    damage, says = SEEDED[name]
    found = stopped(TOYS[MODEL](), None)
    damage(found.gm.graph)
    fault = faults(found)
    assert fault is not None
    assert re.search(says, fault), fault
