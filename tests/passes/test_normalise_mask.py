"""Masks that say one thing to all queries become key masks, in every spelling; masks that do not are left."""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Node
from torch.fx.experimental.proxy_tensor import make_fx

from jenga_compile.passes.normalise_mask import Normalised, normalise
from tests.passes.mask_harness import MakeMask, Outcome, attend, compiled, qkv, run
from tests.tolerance import assert_rounding, eager_attention

N, HEADS = 7, 3
CAUSAL = torch.ones(N, N, dtype=torch.bool).tril()


def padding(batch: int = 2) -> Tensor:
    """Sample 0 has padding at the end, sample 1 in the middle, others none."""
    mask = torch.ones(batch, N, dtype=torch.bool)
    mask[0, 5:] = False
    mask[1:2, 2:4] = False
    return mask


def row(m: Tensor) -> Tensor:
    return m[:, None, None, :]


def for_heads(m: Tensor) -> Tensor:
    return m[:, None].repeat_interleave(HEADS, 0).view(-1, HEADS, 1, N)


def stretch_and_transpose(m: Tensor) -> Tensor:
    rows = m.view(m.shape[0], 1, 1, -1).repeat(1, 1, m.shape[1], 1)
    return (rows & rows.transpose(2, 3)).bool()


def length_compare(m: Tensor) -> Tensor:
    lengths = 3 + m[:, 3:].sum(dim=1, dtype=torch.int)
    outside = torch.arange(N).unsqueeze(0) >= lengths.unsqueeze(1)
    return row(torch.ones(m.shape[0], N, dtype=torch.bool).masked_fill(outside, False))


def written_in_place(m: Tensor) -> Tensor:
    mask = torch.zeros(m.shape[0], N, dtype=torch.bool)
    mask[0, :3] = True
    mask[1:, 1:] = m[1:, 1:]
    return row(mask)


def one_column_open(m: Tensor) -> Tensor:
    mask = stretch_and_transpose(m)
    mask[:, :, :, 0] = True
    return mask


EXACT: dict[str, MakeMask] = {
    "key mask": row,
    "one row, two dimensions": lambda m: m[:1],
    "batch of one": lambda m: row(m[:1]),
    "expanded": lambda m: row(m).expand(-1, HEADS, N, N),
    "expanded over heads": lambda m: row(m).expand(-1, HEADS, -1, -1),
    "expanded and copied": lambda m: row(m).expand(-1, HEADS, N, N).contiguous(),
    "repeated": lambda m: row(m).repeat(1, HEADS, N, 1),
    "tiled": lambda m: row(m).tile(1, 1, N, 1),
    "repeat_interleave over heads": lambda m: for_heads(m),
    "folded into the batch": lambda m: m[:, None].expand(-1, HEADS, N).reshape(-1, N).view(-1, HEADS, 1, N),
    "broadcast by and": lambda m: row(m) & torch.ones(N, 1, dtype=torch.bool),
    "broadcast by or": lambda m: row(m) | torch.zeros(1, 1, N, N, dtype=torch.bool),
    "broadcast by where": lambda m: torch.where(row(m), torch.ones(N, N, dtype=torch.bool), False),
    "twice negated": lambda m: ~(~row(m)).expand(-1, -1, N, -1),
    "lengths": length_compare,
    "lengths for every query": lambda m: length_compare(m).repeat(1, 1, N, 1),
    "joined": lambda m: row(torch.cat([m[:, :3], torch.ones_like(m[:, 3:])], dim=1)),
    "joined after stretching": lambda m: torch.cat(
        [row(m[:, :3]).expand(-1, 1, N, -1), torch.ones(m.shape[0], 1, N, N - 3, dtype=torch.bool)], dim=-1
    ),
    "batches joined after stretching": lambda m: torch.cat([row(x).repeat(1, 1, N, 1) for x in (m[:1], m[1:])]),
    "padded": lambda m: row(F.pad(m[:, 2:], (2, 0), value=True)),
    "padded integers": lambda m: row(F.pad(m[:, 2:].long(), (2, 0), value=True).bool()),
    "padded after stretching": lambda m: F.pad(row(m[:, 2:]).expand(-1, 1, N, -1), (2, 0), value=True),
    "cut after stretching": lambda m: row(torch.cat([m, m], dim=1)).repeat(1, 1, N + 2, 1)[..., 2:, 3 : N + 3],
    "one query of many": lambda m: (row(m) & m[:, None, :, None])[:, :, :1],
    "written in place": written_in_place,
    "from numbers": lambda m: row(m.float() > 0.5).expand(-1, 1, N, N),
    "sample switch": lambda m: row(m) & m[:, 3].view(-1, 1, 1, 1),
    "fully masked sample": lambda m: row(m & (torch.arange(m.shape[0]) > 0)[:, None]),
    "key and query": stretch_and_transpose,
    "key and query, two views": lambda m: m[:, None, :, None] & m[:, None, None, :],
    "key and query, product": lambda m: (m.unsqueeze(1) * m.unsqueeze(2)).unsqueeze(1),
    "key and query, integers": lambda m: (m.int().unsqueeze(1) * m.int().unsqueeze(2)).bool().unsqueeze(1),
    "key and query, different": lambda m: row(m) & length_compare(m).transpose(2, 3),
    "key and query and more": lambda m: row(m) & m[:, None, :, None] & row(m[:1]) & length_compare(m),
    "key and query, for heads": lambda m: stretch_and_transpose(m).repeat(1, HEADS, 1, 1),
    "query alone": lambda m: m[:, None, :, None].expand(-1, 1, N, N),
    "not neither": lambda m: ~(~row(m) | ~m[:, None, :, None]),
    "infinite": lambda m: torch.zeros(m.shape[0], 1, 1, N).masked_fill(~row(m), -math.inf),
    "infinite, where": lambda m: row(torch.where(m, 0.0, -math.inf)),
    "infinite, tensors": lambda m: torch.where(row(m), torch.tensor(0.0), torch.tensor(-math.inf)),
    "infinite, logarithm": lambda m: row(m.float().log()),
    "infinite, stretched": lambda m: row(torch.where(m, 0.0, -math.inf)).expand(-1, HEADS, N, N),
    "infinite, for heads": lambda m: for_heads(torch.where(m, 0.0, -math.inf)),
    "infinite, key and query": lambda m: torch.zeros(N, N).masked_fill(~stretch_and_transpose(m), -math.inf),
    "infinite, sum": lambda m: row(m.float().log()) + m.float().log()[:, None, :, None],
    "infinite by overflow": lambda m: row((1 - m.half()) * torch.finfo(torch.half).min * 2).float(),
    "infinite, fully masked sample": lambda m: row((m & (torch.arange(m.shape[0]) > 0)[:, None]).float().log()),
    "joined zeros and infinite": lambda m: row(torch.cat([torch.zeros(m.shape[0], 3), m[:, 3:].float().log()], dim=1)),
}  # fmt: skip
"""Masks [B, N] -> mask of attention; boolean, or closed by -inf."""

ROUNDING: dict[str, MakeMask] = {
    "ten thousand": lambda m: row((1 - m.float()) * -10000),
    "ten thousand in bfloat16": lambda m: row((1 - m.to(torch.bfloat16)) * -10000).float(),
    "ten thousand for heads": lambda m: for_heads((1 - m.float()) * -1e4),
    "ten thousand, fully masked sample": lambda m: row(
        (1 - (m & (torch.arange(m.shape[0]) > 0)[:, None]).float()) * -10000
    ),
    "lowest number": lambda m: row((1 - m.float()) * torch.finfo(torch.float32).min),
    "times the largest": lambda m: row((m.float() - 1) * torch.finfo(torch.float32).max),
    "lowest, filled in": lambda m: torch.zeros(1, 1, N, N).masked_fill(~row(m), torch.finfo(torch.float32).min),
    "integers": lambda m: row((1 - m.long()) * -100000).float(),
    "joined with zeros": lambda m: row(torch.cat([torch.zeros(2, 3), (1 - m[:, 3:].float()) * -1e5], dim=1)),
    "joined with zeros that are cut off": lambda m: row(
        torch.cat([torch.zeros(2, 3), (1 - (m & (torch.arange(2) > 0)[:, None]).float()) * -1e4], dim=1)[:, 3:]
    ),
    "padded with zeros": lambda m: row(F.pad((1 - m[:, 3:].float()) * -1e5, (3, 0))),
    "query bias": lambda m: row((1 - m.float()) * -1e4) + ((1 - m.float()) * -1e4)[:, None, :, None],
}  # fmt: skip

LEFT: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "causal": (lambda m: CAUSAL.clone() & row(m), "mask [2, 1, 7, 7] differs between queries"),
    "causal by positions": (lambda m: torch.arange(N)[:, None] >= torch.arange(N), "mask [7, 7] differs between"),
    "earlier, by counting": (lambda m: m.cumsum(1)[:, None, None] < m.cumsum(1)[:, None, :, None], "differs between q"),
    "window": (lambda m: (torch.arange(N)[:, None] - torch.arange(N)).abs() < 3, "differs between queries"),
    "frames": (lambda m: (torch.arange(N)[:, None] // 2) == (torch.arange(N) // 2), "differs between queries"),
    "key or query": (lambda m: row(m) | m[:, None, :, None], "mask [2, 1, 7, 7] differs between queries"),
    "same kind": (lambda m: row(m) == m[:, None, :, None], "differs between queries"),
    "key and query, but one column": (one_column_open, "mask [2, 1, 7, 7] differs between queries"),
    "finite, key and query": (
        lambda m: torch.zeros(N, N).masked_fill(~stretch_and_transpose(m), -1e4),
        "differs between queries",
    ),
    "per head": (lambda m: row(m) & torch.stack([m[0], m[1], m[0]])[:, None], "differs between heads"),
    "distance bias": (
        lambda m: -torch.tensor([0.5, 0.25, 0.125])[:, None, None] * (torch.arange(N)[:, None] - torch.arange(N)).abs(),
        "differs between heads",
    ),
    "key bias": (lambda m: row(m.cumsum(1).float()), "additive mask of unknown values"),
    "weak": (lambda m: row((1 - m.float()) * -5), "additive mask with values above -9984"),
    "several numbers": (lambda m: row((1 - m.float()) * -1e4 + (1 - m[:1].float()) * -2e4), "several numbers"),
    "shifted": (lambda m: row(torch.where(m, 1.0, -math.inf)), "largest value is not 0"),
    "not a number": (lambda m: row((1 - m.float()) * -math.inf), "largest value is not 0"),
}  # fmt: skip


def assert_key_mask(mask: Node | None, batch: int, keys: int = N) -> None:
    if mask is None:
        return
    value = mask.meta["val"]
    assert value.dtype is torch.bool
    assert tuple(value.shape) in {(1, 1, 1, keys), (batch, 1, 1, keys)}


BOTH = pytest.mark.parametrize("decompose", [True, False], ids=["inductor", "eager"])


@functools.cache
def exact(decompose: bool, batch: int) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], Outcome]:
    return run(list(EXACT.values()), qkv(batch), [padding(batch)], decompose=decompose)


@pytest.mark.parametrize(("decompose", "batch"), [(True, 2), (False, 3)], ids=["inductor", "eager"])
@pytest.mark.parametrize("name", EXACT)
def test_a_mask_of_booleans_becomes_a_key_mask_bit_for_bit(name: str, decompose: bool, batch: int) -> None:
    written, found, outcome = exact(decompose, batch)
    site = list(EXACT).index(name)
    assert outcome.reasons[site] == ""
    assert_key_mask(outcome.masks()[site], batch)
    assert torch.equal(written[site], found[site])


@BOTH
def test_no_matrix_of_queries_and_keys_is_left(decompose: bool) -> None:
    assert exact(decompose, 2 if decompose else 3)[2].matrices(N, N) == []


@functools.cache
def rounded(decompose: bool) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], Outcome]:
    return run(list(ROUNDING.values()), qkv(), [padding()], decompose=decompose)


@BOTH
@pytest.mark.parametrize("name", ROUNDING)
def test_a_mask_of_numbers_becomes_a_key_mask_up_to_rounding(name: str, decompose: bool) -> None:
    (q, k, v), bias = qkv(), ROUNDING[name](padding())
    _, found, outcome = rounded(decompose)
    site = list(ROUNDING).index(name)
    assert outcome.reasons[site] == ""
    assert_key_mask(outcome.masks()[site], 2)
    assert outcome.matrices(N, N) == []
    truth = eager_attention(q.double(), k.double(), v.double(), bias.double())
    heads = found[site].unflatten(2, (HEADS, -1)).transpose(1, 2)
    assert_rounding(heads, truth, eager_attention(q, k, v, bias), v)


@BOTH
def test_other_masks_are_left_with_their_reason(decompose: bool) -> None:
    makes = [make for make, _ in LEFT.values()]
    written, found, outcome = run(makes, qkv(), [padding()], decompose=decompose)
    for site, (make, reason) in enumerate(LEFT.values()):
        assert reason in outcome.reasons[site]
        mask = outcome.masks()[site]
        assert mask is not None
        assert mask.meta["val"].shape == make(padding()).shape
        assert torch.equal(written[site].nan_to_num(), found[site].nan_to_num())


def given(mask: Tensor) -> Tensor:
    return mask


LEFT_INPUTS = {
    "numbers": (torch.zeros(2, 1, 1, N), given, "additive mask of unknown values: pass a boolean mask"),
    "numbers, scaled": (torch.ones(2, N), lambda m: row((1 - m) * -1e4), "additive mask of unknown values"),
    "matrix": (CAUSAL.expand(2, 1, N, N).clone(), given, "mask [2, 1, 7, 7] differs between queries"),
    "matrix of numbers": (torch.zeros(2, 1, N, N), given, "mask [2, 1, 7, 7] differs between queries"),
    "bias of heads": (torch.zeros(1, HEADS, 1, N), given, "mask [1, 3, 1, 7] differs between heads"),
    "masks of heads": (torch.ones(1, HEADS, 1, N).bool(), given, "mask [1, 3, 1, 7] differs between heads"),
    "earlier positions": (torch.arange(N).expand(2, N).clone(), lambda p: row(p) < p[:, None, :, None], "positions"),
    "near positions": (torch.arange(N).expand(2, N).clone(), lambda p: row(p) - p[:, None, :, None] < 5, "positions"),
    "signs": (torch.arange(N).expand(2, N) - 3, lambda p: row((1 - p.clamp(-1, 1).float()) * -1e4), "may be negative"),
    "documents": (torch.arange(N).expand(2, N) // 3, lambda p: row(p) == p[:, None, :, None], "positions"),
}  # fmt: skip


@pytest.mark.parametrize("name", LEFT_INPUTS)
def test_inputs_that_prove_nothing_are_left(name: str) -> None:
    mask, make, reason = LEFT_INPUTS[name]
    (written,), (found,), outcome = run([make], qkv(), [mask])
    assert reason in outcome.reasons[0]
    assert torch.equal(written, found)


NUMBERS = torch.tensor([[5, 6, 1, 0, -1, -1, -1], [1, 2, 3, 4, 5, 6, 7]])
"""Tokens in a vocabulary; -1 pads."""

KEY_INPUTS = {
    "booleans stretched outside": (row(padding()).expand(2, HEADS, N, N), given),
    "integers, ten thousand": (padding().long(), lambda m: row((1 - m.float()) * -1e9)),
    "integers, product": (padding().int(), lambda m: (m[:, None, :, None] * m[:, None, None]) > 0),
    "token numbers, clamped": (NUMBERS, lambda m: row((1 - m.clamp(0, 1).float()) * -1e4)),
    "token numbers, halved": (NUMBERS, lambda m: row((1 - ((m.abs() + m) / 2).clamp(max=1)) * -1e4)),
    "signs, subtracted": (NUMBERS.sign(), lambda m: row((1 - m.float()) * -1e9)),
    "token numbers above 0": (NUMBERS, lambda m: row(m > 0)),
    "token numbers but 0": (NUMBERS, lambda m: row(m != 0)),
    "bytes, filled": (padding().byte(), lambda m: torch.zeros(2, 1, 1, N).masked_fill(row(m) == 0, -torch.inf)),
}


@pytest.mark.parametrize("name", KEY_INPUTS)
def test_inputs_become_key_masks(name: str) -> None:
    mask, make = KEY_INPUTS[name]
    (written,), (found,), outcome = run([make], qkv(), [mask])
    assert_key_mask(outcome.masks()[0], 2)
    assert torch.equal(written, found)


OPEN: dict[str, MakeMask] = {
    "ones": lambda m: torch.ones(2, 1, N, N, dtype=torch.bool),
    "ones like": lambda m: torch.ones_like(m)[:, None, None].expand(-1, HEADS, N, N),
    "joined ones": lambda m: torch.cat([m.new_ones(2, 1, 1, 3), m.new_ones(2, 1, 1, N - 3)], dim=-1),
    "not zeros": lambda m: ~torch.zeros(N, N, dtype=torch.bool),
    "or": lambda m: row(m) | torch.ones(1, 1, N, N, dtype=torch.bool),
    "zeros to add": lambda m: torch.zeros(N, N),
}


def test_a_mask_that_closes_nothing_goes() -> None:
    written, found, outcome = run(list(OPEN.values()), qkv(), [padding()])
    assert outcome.masks() == [None] * len(OPEN)
    torch.testing.assert_close(found, written)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_rows_without_a_key_are_zero_as_they_were(dtype: torch.dtype) -> None:
    names = ("key and query", "infinite, key and query", "fully masked sample", "infinite, fully masked sample")

    def cast(make: MakeMask) -> MakeMask:
        return lambda m: make(m) if make(m).dtype is torch.bool else make(m).to(dtype)

    written, found, _ = run([cast(EXACT[name]) for name in names], qkv(dtype=dtype), [padding()])
    for before, after in zip(written, found, strict=True):
        assert torch.equal(before, after)
        assert torch.equal(after[0, 5:], torch.zeros_like(after[0, 5:]))


def test_layers_share_one_key_mask_however_many_build_it() -> None:
    few, many = (run([stretch_and_transpose] * layers, qkv(), [padding()])[2] for layers in (2, 5))
    assert len(set(many.masks())) == 1
    assert few.graph is not None
    assert many.graph is not None
    grown = len(many.graph.graph.nodes) - len(few.graph.graph.nodes)
    assert grown == 3 * 8, "attention, four nodes for its empty rows, the query mask's view, and two views of the model"


def test_a_key_mask_stays_the_node_it_is() -> None:
    _, _, outcome = run([given], qkv(), [row(padding())])
    (mask,) = outcome.masks()
    assert mask is not None
    assert mask.op == "placeholder"


def test_cross_attention_has_its_own_number_of_keys() -> None:
    makes = [row, lambda m: row(m).repeat(1, 1, 5, 1), lambda m: row(m) & m[:, None, :5, None]]
    written, found, outcome = run(makes, qkv(queries=5), [padding()])
    for site in range(len(makes)):
        assert_key_mask(outcome.masks()[site], 2)
        assert torch.equal(written[site], found[site])
    assert outcome.matrices(5, N) == []


def test_the_result_lies_in_memory_as_it_did() -> None:
    _, _, outcome = run([stretch_and_transpose], qkv(), [padding()])
    assert outcome.graph is not None
    (where,) = outcome.graph.graph.find_nodes(op="call_function", target=torch.ops.aten.where.self)
    assert where.meta["val"].is_contiguous()
    assert tuple(where.meta["val"].shape) == (2, N, HEADS, 8)


def joint(text: Tensor) -> Tensor:
    return torch.cat([text.new_ones(text.shape[0], 4), text], dim=1)


DYNAMIC: dict[str, MakeMask] = {
    "key": lambda text: row(joint(text)),
    "key and query": lambda text: stretch_and_transpose(joint(text)),
    "padded": lambda text: stretch_and_transpose(F.pad(text.long(), (4, 0), value=True).bool()),
    "for heads": lambda text: row(joint(text)).expand(-1, HEADS, joint(text).shape[1], -1),
    "joined": lambda text: row(torch.cat([torch.zeros(text.shape[0], 4), text.float().log()], dim=1)),
    "padded numbers": lambda text: row(F.pad((1 - text.float()) * -1e4, (4, 0))),
}


def test_one_graph_serves_all_sizes() -> None:
    outcome, function = Outcome(), attend(list(DYNAMIC.values()))
    rewritten = compiled(function, outcome, dynamic=True)
    for batch, length in ((2, 5), (3, 8), (4, 11)):
        tensors = qkv(batch, queries=4 + length, keys=4 + length)
        text = torch.arange(length) < torch.arange(2, 2 + batch)[:, None]
        with torch.no_grad():
            torch.testing.assert_close(rewritten(*tensors, text), function(*tensors, text))
    assert outcome.graphs == 1
    assert outcome.reasons == ("",) * len(DYNAMIC)
    for mask in outcome.masks():
        assert mask is not None
        value = mask.meta["val"]
        assert value.dtype is torch.bool
        assert value.shape[1:3] == (1, 1)
        assert isinstance(value.shape[3], torch.SymInt)


def test_the_key_mask_is_on_the_device_of_the_mask() -> None:
    def moved(m: Tensor) -> Tensor:
        there = m.to("meta")
        return (there[:, None, :, None] * there[:, None, None]) > 0

    graph = make_fx(moved, tracing_mode="fake")(padding().long()).graph
    (mask,) = graph.output_node().args
    found = normalise(graph, mask, N)
    assert isinstance(found, Normalised)
    for part in (found.key, found.query):
        assert part is not None
        assert part.meta["val"].device.type == "meta"


def test_sizes_that_depend_on_data_stay_unknown() -> None:
    def trimmed(m: Tensor) -> Tensor:
        kept = m[0].nonzero()[:, 0]
        ok = torch.ones_like(kept, dtype=torch.bool)
        return ok[:, None] & ok

    graph = make_fx(trimmed, tracing_mode="symbolic")(padding()).graph
    (mask,) = graph.output_node().args
    assert normalise(graph, mask, mask.meta["val"].shape[-1]) == Normalised(None, None)


SAMPLES = 16


class RandomMask:
    """A random expression over two padding masks; its choices come from the seed alone."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __call__(self, m: Tensor, n: Tensor) -> Tensor:
        choose = random.Random(self.seed)
        mask = self._boolean(choose, m, n, depth=choose.randint(1, 3))
        return self._added(choose, mask) if choose.random() < 0.4 else mask

    def _boolean(self, choose: random.Random, m: Tensor, n: Tensor, depth: int) -> Tensor:
        """[B or 1, H or 1, Q or 1, K]"""
        if depth == 0:
            return self._leaf(choose, m, n)
        first = self._boolean(choose, m, n, depth - 1)
        kind = choose.randrange(9)
        if kind < 4:
            return first & self._boolean(choose, m, n, depth - 1)
        if kind == 4:
            return first | self._boolean(choose, m, n, depth - 1)
        if kind == 5:
            return first.expand(-1, HEADS, N, -1).contiguous()
        if kind == 6:
            return first.expand(-1, -1, N, -1).transpose(2, 3)
        if kind == 7:
            return torch.cat([first[..., :4], torch.ones_like(first[..., 4:])], dim=-1)
        return ~first

    def _leaf(self, choose: random.Random, m: Tensor, n: Tensor) -> Tensor:
        kind = choose.randrange(16)
        source = choose.choice((m, n))
        if kind < 7:
            return row(source)
        if kind < 12:
            return row(source).repeat(1, 1, N, 1).transpose(2, 3)
        if kind == 12:
            return F.pad(row(source[:, 2:]), (2, 0), value=choose.choice((True, False)))
        if kind == 13:
            return torch.ones(1, 1, N, N, dtype=torch.bool)
        if kind == 14:
            return (torch.arange(N)[:, None] >= torch.arange(N))[None, None]
        return torch.stack([m[0], n[0], m[1]])[None, :, None]

    def _added(self, choose: random.Random, mask: Tensor) -> Tensor:
        closed = choose.choice((-math.inf, -1e4, -2e4))
        kind = choose.randrange(3)
        if kind == 0 and math.isfinite(closed):
            return (1 - mask.double()) * closed
        if kind == 1:
            return torch.where(mask, 0.0, closed).double()
        return torch.zeros(1, 1, 1, 1, dtype=torch.float64).masked_fill(~mask, closed)


def law(seed: int) -> bool:
    """Whether the mask of `seed` is normalised; if it is, to the same function for all values of its inputs."""
    make, samples = RandomMask(seed), torch.Generator().manual_seed(seed)
    m, n = (torch.rand(SAMPLES, N, generator=samples) < 0.6 for _ in range(2))
    gm = make_fx(make, tracing_mode="fake", _allow_non_fake_inputs=True)(m, n)
    (mask,) = gm.graph.output_node().args
    found = normalise(gm.graph, mask, N)
    if isinstance(found, str):
        return False
    gm.graph.output_node().args = ((found.key, found.query),)
    gm.graph.eliminate_dead_code()
    assert not [node for node in gm.graph.nodes if node.op != "output" and tuple(node.meta["val"].shape[-2:]) == (N, N)]
    gm.recompile()
    key, query = gm(m, n)
    assert key is None or key.shape[1:] == (1, 1, N)
    q, k, v = qkv(SAMPLES, dtype=torch.float64)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=key)
    out = out if query is None else torch.where(query, out, 0)
    truth = F.scaled_dot_product_attention(q, k, v, attn_mask=make(m, n))
    torch.testing.assert_close(out, truth, rtol=1e-9, atol=1e-9)
    return True


def test_what_is_claimed_of_random_masks_is_true() -> None:
    proven = sum(law(seed) for seed in range(150))
    assert 50 <= proven <= 120
