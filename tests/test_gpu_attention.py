"""`block_sparse_attention` on a CUDA GPU: each kernel that the GPU has, against float64."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from jenga_compile.errors import KernelUnavailable
from jenga_compile.kernels.block_sparse_attention import gathered
from jenga_compile.kernels.knobs import make_knobs
from tests.kernels.test_block_sparse_attention import key_masks, random_lists
from tests.tolerance import FACTOR, assert_rounding, eager_attention

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
    # of what FlashAttention 4 is made with, newer than itself
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:Argument aux_data"),
]

attend = torch.ops.jenga.block_sparse_attention
EXACT = ("hopper", "portable", "flash4")
PLAIN = make_knobs(1.0, 0.0)


@contextmanager
def uninitialised_memory_is_nan() -> Iterator[None]:
    """Deterministic mode fills what `empty` returns with NaN, so an output left unwritten shows."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def qkv(length: int, dim: int, dtype: torch.dtype, batch: int = 2, heads: int = 3) -> list[torch.Tensor]:
    """Seeded q, k, v [B, H, L, D] with BSHD storage."""
    random = torch.Generator().manual_seed(length)
    return [
        torch.randn(batch, length, heads, dim, generator=random).to("cuda", dtype).transpose(1, 2) for _ in range(3)
    ]


def one_further(x: torch.Tensor) -> torch.Tensor:
    """x [B, H, L, D] again, dense, from the second element of its memory on."""
    dense = x.transpose(1, 2)
    return torch.cat((x.new_empty(1), dense.flatten()))[1:].view(dense.shape).transpose(1, 2)


def lists(video: int, text: int, share: float, batch: int = 2, heads: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    indices, counts = random_lists(video, text, batch, heads, share)
    return indices.cuda(), counts.cuda()


def run(kernel: str, *arguments: object) -> torch.Tensor:
    try:
        with uninitialised_memory_is_nan():
            return attend(*arguments, provider=kernel)
    except KernelUnavailable as error:
        pytest.skip(str(error))


def eager(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, rows: tuple[torch.Tensor, ...], video: int, mask, bias):
    """`eager_attention` under the lists' meaning, in the dtype of q."""
    from tests.kernels.test_block_sparse_attention import dense_bias

    table = dense_bias(*(x.cpu() for x in rows), video, q.shape[2], None if mask is None else mask.cpu(), bias).cuda()
    return table, eager_attention(q, k, v, table)


def assert_attends(kernel: str, q, k, v, rows, video: int, mask=None, bias: float = 0.0) -> torch.Tensor:
    knobs = make_knobs(1.0, 0.0, bias, device="cuda")
    out = run(kernel, q, k, v, *rows, knobs, video, mask, None)
    table, plain = eager(q, k, v, rows, video, mask, float(knobs[2]))
    empty = table.isneginf().all(-1)
    assert (out[empty] == 0).all()
    truth = eager_attention(q.double(), k.double(), v.double(), table)
    assert_rounding(out[~empty], truth[~empty], plain[~empty], v)
    return out


@pytest.mark.parametrize("kernel", EXACT)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("text", [0, 1, 127, 128, 129, 300])
@pytest.mark.parametrize("video", [1, 127, 128, 129, 1000])
def test_any_length(kernel: str, video: int, text: int, masked: bool) -> None:
    q, k, v = qkv(video + text, 128, torch.bfloat16)
    rows = lists(video, text, 0.5)
    mask = key_masks(video, text).cuda() if masked else None
    assert_attends(kernel, q, k, v, rows, video, mask, bias=-0.5 if masked else 0.7)


@pytest.mark.parametrize("kernel", EXACT)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("dim", [64, 72, 80, 88, 96, 112, 128, 256])
def test_every_dtype_and_head_dim(kernel: str, dtype: torch.dtype, dim: int) -> None:
    q, k, v = qkv(700 + 129, dim, dtype)
    assert_attends(kernel, q, k, v, lists(700, 129, 0.5), 700, bias=0.3)


@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("number", range(3))
def test_what_triton_gives_warps_of_its_own_is_right(monkeypatch: pytest.MonkeyPatch, number: int, dim: int) -> None:
    """The tuner leaves out what is wrong, so that only a slow kernel would tell."""
    from jenga_compile.kernels.block_sparse_attention import portable

    config = (portable._SPECIALIZED, *portable._DESCRIPTORS)[number]
    if config.specialize and torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("for Hopper")
    monkeypatch.setattr(portable, "_tuned", lambda *_: config)
    for video, text in ((1000, 129), (128, 0), (5, 300)):
        q, k, v = qkv(video + text, dim, torch.bfloat16)
        assert_attends("portable", q, k, v, lists(video, text, 0.5), video, bias=0.3)


@pytest.mark.parametrize("kernel", EXACT)
@pytest.mark.parametrize("factor", [30.0, 1000.0])
def test_logits_of_any_size(kernel: str, factor: float) -> None:
    """A few keys far above the rest: what a reference other than the row's maximum cannot hold is computed anew."""
    q, k, v = qkv(1000 + 129, 128, torch.bfloat16)
    k[:, :, 5] *= factor
    k[:, :, 900] *= factor
    assert_attends(kernel, q, k, v, lists(1000, 129, 0.7), 1000)
    assert_attends(kernel, q * 30, k, v, lists(1000, 129, 0.7), 1000)


@pytest.mark.parametrize("kernel", EXACT)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("nats", [0.0, -20.0, -120.0])
def test_a_first_block_of_padding_and_small_logits(kernel: str, dtype: torch.dtype, nats: float) -> None:
    """Kernels that walk a list from its end meet a block without keys first: no maximum to go by."""
    video, text = 700, 256
    q, k, v = qkv(video + text, 64, dtype)
    mask = torch.ones(2, video + text, dtype=torch.bool, device="cuda")
    mask[:, -128:] = False
    q[..., 0], k[..., 0] = 8.0, nats
    assert_attends(kernel, q, k, v, lists(video, text, 0.5), video, mask)


@pytest.mark.parametrize("kernel", EXACT)
def test_any_storage(kernel: str) -> None:
    video, length, dim = 700, 829, 128
    bshd = qkv(length, dim, torch.bfloat16)
    rows = lists(video, length - video, 0.5)
    expected = assert_attends(kernel, *bshd, rows, video)
    fused = torch.stack([x.transpose(1, 2) for x in bshd], 2)
    layouts = {
        "BHSD": [x.contiguous() for x in bshd],
        "one tensor of q, k and v": [fused[:, :, i].transpose(1, 2) for i in range(3)],
        "head dim not last": [x.mT.contiguous().mT for x in bshd],
        "not aligned": [one_further(x) for x in bshd],
        "rows of odd size": [torch.nn.functional.pad(x, (0, 1))[..., :dim] for x in bshd],
    }
    for storage in layouts.values():
        assert assert_attends(kernel, *storage, rows, video).stride() == expected.stride()


@pytest.mark.parametrize("kernel", [*EXACT, "fp8"])
def test_a_head_does_not_look_at_others(kernel: str) -> None:
    q, k, v = qkv(829, 64, torch.bfloat16)
    indices, counts = lists(700, 129, 0.5)
    knobs = make_knobs(1.0, 0.0, device="cuda")
    order = torch.tensor([2, 0, 1], device="cuda")
    out = run(kernel, q, k, v, indices, counts, knobs, 700, None, None)
    moved = run(kernel, *(x[:, order] for x in (q, k, v, indices, counts)), knobs, 700, None, None)
    assert torch.equal(moved, out[:, order])


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.parametrize(
    ("kernel", "share"),
    [("hopper", 0.02), ("portable", 0.035), ("fp8", 1.6), ("flash4", 1.2)],
)
def test_nothing_waits_for_the_gpu_and_the_memory_taken_is_what_it_says(kernel: str, share: float) -> None:
    q, k, v = qkv(40_000 + 256, 128, torch.bfloat16, batch=1, heads=8)
    rows = lists(40_000, 256, 0.2, batch=1, heads=8)
    knobs = make_knobs(1.0, 0.0, device="cuda")
    run(kernel, q, k, v, *rows, knobs, 40_000, None, None)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    torch.cuda.set_sync_debug_mode("error")
    try:
        out = run(kernel, q, k, v, *rows, knobs, 40_000, None, None)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    taken = torch.cuda.max_memory_allocated() - before - out.numel() * out.element_size()
    assert taken <= share * q.numel() * q.element_size()


@pytest.mark.filterwarnings("ignore:The CUDA Graph is empty")  # Inductor captures one to warm up
@pytest.mark.parametrize("kernel", [*EXACT, "fp8"])
@pytest.mark.parametrize("masked", [False, True])
def test_on_a_stream_in_a_graph_and_compiled(kernel: str, masked: bool) -> None:
    video = 700
    q, k, v = qkv(829, 128, torch.bfloat16)
    mask = key_masks(video, 129).cuda() if masked else None
    rows, knobs = lists(video, 129, 0.5), make_knobs(1.0, 0.0, device="cuda")
    expected = run(kernel, q, k, v, *rows, knobs, video, mask, None)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        beside = run(kernel, q, k, v, *rows, knobs, video, mask, None)
    torch.cuda.current_stream().wait_stream(stream)
    assert torch.equal(beside, expected)

    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run(kernel, q, k, v, *rows, knobs, video, mask, None)
    captured.zero_()
    q_before = q.clone()
    q.mul_(-1)
    graph.replay()
    other = captured.clone()
    q.copy_(q_before)
    graph.replay()
    assert torch.equal(captured, expected)
    assert not torch.equal(other, expected)

    def called(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return attend(q, k, v, *rows, knobs, video, mask, None, kernel) + 1

    compiled = torch.compile(called, fullgraph=True, mode="reduce-overhead")
    with torch.no_grad():
        for _ in range(3):
            torch.compiler.cudagraph_mark_step_begin()
            assert torch.equal(compiled(q, k, v), expected + 1)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("kernel", [*EXACT, "fp8"])
def test_on_another_gpu_than_the_current(kernel: str) -> None:
    q, k, v = qkv(829, 128, torch.bfloat16)
    rows = lists(700, 129, 0.5)
    expected = run(kernel, q, k, v, *rows, PLAIN.cuda(), 700, None, None)
    there = [x.to("cuda:1") for x in (q, k, v, *rows, PLAIN)]
    assert torch.equal(run(kernel, *there, 700, None, None).to(q.device), expected)


FP8_CAP = 0.045
"""Largest error of fp8 on `structured`, |out - truth| / |truth|, whatever `in_plain_fp8` gives there."""


def structured(length: int, dim: int, dtype: torch.dtype = torch.bfloat16) -> list[torch.Tensor]:
    """q and k with shared, slowly changing parts, and values with a mean, as models have them."""
    random = torch.Generator().manual_seed(length)
    place = torch.arange(length)[:, None] / 40
    waves = torch.cos(place * torch.randn(dim, generator=random) + torch.rand(dim, generator=random) * 6.28)
    noise = [torch.randn(2, 3, length, dim, generator=random) for _ in range(3)]
    mean = torch.randn(dim, generator=random)
    made = (1.2 * waves + 0.6 * noise[0], 1.2 * waves + 0.6 * noise[1] + 2 * mean, waves + mean + 0.5 * noise[2])
    return [x.to("cuda", dtype).transpose(1, 2).contiguous().transpose(1, 2) for x in made]


def in_plain_fp8(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, table: torch.Tensor, seen) -> torch.Tensor:
    """Attention on q, k, v and weights rounded to e4m3, with a scale a head."""
    eight = []
    for x in (q, k if seen is None else k * seen[:, None, :, None], v if seen is None else v * seen[:, None, :, None]):
        scale = 448 / x.double().abs().amax((2, 3), keepdim=True)
        eight.append((x.double() * scale).float().to(torch.float8_e4m3fn).double() / scale)
    q, k, v = eight
    logits = q @ k.mT * q.shape[-1] ** -0.5 + table
    weights = (logits - logits.amax(-1, keepdim=True).nan_to_num(neginf=0.0)).exp()
    rounded = (weights * 448).float().to(torch.float8_e4m3fn).double() / 448
    return rounded @ v / weights.sum(-1, keepdim=True)


def assert_attends_in_fp8(q, k, v, rows, video: int, mask=None, bias: float = 0.0) -> torch.Tensor:
    out = run("fp8", q, k, v, *rows, make_knobs(1.0, 0.0, bias, device="cuda"), video, mask, None)
    table, truth = eager(q.double(), k.double(), v.double(), rows, video, mask, bias)
    empty = table.isneginf().all(-1)
    assert (out[empty] == 0).all()
    truth = truth[~empty]
    error, plain = (
        float((x.double()[~empty] - truth).norm() / truth.norm()) for x in (out, in_plain_fp8(q, k, v, table, mask))
    )
    assert error <= min(FACTOR * plain, FP8_CAP)
    return out


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("text", [0, 1, 129])
@pytest.mark.parametrize("video", [1, 128, 129, 1000])
def test_fp8_any_length(video: int, text: int, masked: bool) -> None:
    q, k, v = structured(video + text, 128)
    mask = key_masks(video, text).cuda() if masked else None
    if masked:  # what masked keys hold must not count, for scales neither
        k, v = (x.where(mask[:, None, :, None], torch.tensor(1e4, device="cuda").to(x)) for x in (k, v))
    assert_attends_in_fp8(q, k, v, lists(video, text, 0.5), video, mask, bias=-0.5 if masked else 0.7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dim", [64, 72, 128])
def test_fp8_every_dtype_and_head_dim(dtype: torch.dtype, dim: int) -> None:
    q, k, v = structured(700 + 129, dim, dtype)
    assert_attends_in_fp8(q, k, v, lists(700, 129, 0.5), 700, bias=0.3)


def test_fp8_lists_of_nothing_and_of_one() -> None:
    q, k, v = structured(829, 128)
    indices, counts = lists(700, 129, 0.5)
    counts[0, 1, 2], counts[1, 0, 0] = 0, 1
    indices[0, 1, 2], indices[1, 0, 0, 1:] = -1, -1
    out = assert_attends_in_fp8(q, k, v, (indices, counts), 700)
    assert (out[0, 1, 256:384] == 0).all()


def test_fp8_long_rows_of_flat_weights() -> None:
    """What is lost where sums are left to the tensor cores: 8 to 40 %."""
    q, k, v = structured(20_000, 128)
    q = q * 0.1
    knobs = make_knobs(1.0, 0.0, device="cuda")
    listed = torch.arange(157, dtype=torch.int32, device="cuda").expand(2, 3, 157, 157).contiguous()
    counts = torch.full((2, 3, 157), 157, dtype=torch.int32, device="cuda")
    out = run("fp8", q, k, v, listed, counts, knobs, 20_000, None, None)[:, :, :256]
    truth = eager_attention(q[:, :, :256].double(), k.double(), v.double())
    assert float((out.double() - truth).norm() / truth.norm()) <= 0.01


def test_fp8_any_storage() -> None:
    q, k, v = structured(829, 128)
    rows = lists(700, 129, 0.5)
    expected = assert_attends_in_fp8(q, k, v, rows, 700)
    knobs = make_knobs(1.0, 0.0, device="cuda")
    others = (q.contiguous(), k.mT.contiguous().mT, torch.nn.functional.pad(v, (0, 1))[..., :128])
    out = run("fp8", *others, *rows, knobs, 700, None, None)
    assert out.stride() == expected.stride()
    assert torch.equal(out, expected)


def test_the_torch_path_is_no_other_operator() -> None:
    """The yardstick of the tuner, on a GPU."""
    q, k, v = qkv(829, 64, torch.float32)
    rows = lists(700, 129, 0.5)
    knobs = make_knobs(1.0, 0.0, device="cuda")
    out = gathered.block_sparse_attention(q, k, v, *rows, knobs, 700, None, 64**-0.5)
    table, plain = eager(q, k, v, rows, 700, None, 0.0)
    full = ~table.isneginf().all(-1)
    assert_rounding(out[full], eager_attention(q.double(), k.double(), v.double(), table)[full], plain[full], v)
