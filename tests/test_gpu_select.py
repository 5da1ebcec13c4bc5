"""Block selection on a CUDA GPU: the kernels' numbers, and that they run where nothing may wait for the device."""

from __future__ import annotations

import pytest
import torch

from jenga_compile import kernels
from jenga_compile.kernels.block_select import gathered
from jenga_compile.kernels.knobs import Knobs, make_knobs
from tests.kernels.test_block_select import as_mask, finely_graded, inputs, key_masks

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]

select = torch.ops.jenga.block_select
VIDEO, TEXT = 1900, 129


@pytest.fixture(autouse=True)
def only_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gathered, "block_select", lambda *_: pytest.fail("another provider ran"))


def on_gpu(video: int = VIDEO, text: int = TEXT, dtype: torch.dtype = torch.bfloat16, **sizes: int):
    """q, k and a static mask on the GPU, q and k as a model's projections leave them: tokens outside, heads inside."""
    q, k, static = inputs(video, text, dtype=dtype, **sizes)
    return *(x.cuda().transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k)), static.cuda()


def defined(q: torch.Tensor, k: torch.Tensor, *rest: object, **options: object) -> tuple[torch.Tensor, torch.Tensor]:
    with kernels.use_reference():
        return select(q.double(), k.double(), *rest, **options)


def assert_same(found: tuple[torch.Tensor, ...], expected: tuple[torch.Tensor, ...]) -> None:
    assert torch.equal(found[1], expected[1])
    assert torch.equal(found[0], expected[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dim", [16, 64, 72, 128])
def test_every_head_dim_and_dtype(dim: int, dtype: torch.dtype) -> None:
    q, k, static = on_gpu(dim=dim, dtype=dtype)
    knobs = make_knobs(0.3, 0.4, device="cuda")
    assert_same(select(q, k, static, knobs, VIDEO), defined(q, k, static, knobs, VIDEO))
    contiguous = select(q.contiguous(), k.mT.contiguous().mT, static, knobs, VIDEO)
    assert_same(contiguous, defined(q, k, static, knobs, VIDEO))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("video", "text"), [(1, 0), (1, 300), (128, 1), (129, 127), (2048, 0), (1900, 300)])
@pytest.mark.parametrize("knobs", [(0.2, 0.0), (0.05, 0.9), (1.0, 0.3)])
def test_lists_are_those_of_the_definition(video: int, text: int, masked: bool, knobs: tuple[float, float]) -> None:
    q, k, static = on_gpu(video, text, batch=2)
    mask = key_masks(video, text).cuda() if masked else None
    arguments = (static, make_knobs(*knobs, device="cuda"), video, mask)
    assert_same(select(q, k, *arguments), defined(q, k, *arguments))


def test_scores_are_as_exact_as_fp32() -> None:
    q, k, best = finely_graded()
    nothing = torch.zeros(40, 40, dtype=torch.bool, device="cuda")
    indices, counts = select(q.cuda(), k.cuda(), nothing, make_knobs(0.5, 0.0, device="cuda"), 5120)
    assert (as_mask(indices.cpu(), counts.cpu()) == best).all()


def test_masks_by_head() -> None:
    q, k, _ = on_gpu(heads=3)
    rows = -(-VIDEO // 128)
    always, allowed = (torch.rand(2, rows, rows, device="cuda") < 0.4 for _ in range(2))
    knobs = make_knobs(0.3, 0.2, device="cuda")
    found = select(q, k, always, knobs, VIDEO, allowed_mask=allowed)
    assert_same(found, defined(q, k, always, knobs, VIDEO, allowed_mask=allowed))


@pytest.mark.parametrize("blocks", [64, 65, 256, 511, 900, 1024, 1025, 2046])
def test_ties_at_every_size_of_tile(blocks: int) -> None:
    from jenga_compile.kernels.block_select import fused

    # Means of whole blocks of one small integer are exact, and so are their scores: no rounding, many ties.
    values = torch.randint(-3, 4, (2, 1, 2, blocks, 16), generator=torch.Generator().manual_seed(blocks))
    q, k = values.cuda().bfloat16().repeat_interleave(128, 3)
    if blocks + 1 > fused.most_blocks(q.device):
        pytest.skip("this GPU has too little shared memory for so many blocks")
    q, k = (torch.cat((x, x[:, :, :5]), 2) for x in (q, k))
    knobs = make_knobs(0.1, 0.2, device="cuda")
    static = torch.eye(blocks, dtype=torch.bool, device="cuda")
    indices, counts = select(q, k, static, knobs, 128 * blocks)

    means = [x[:, :, : 128 * blocks : 128].float() for x in (q, k)]
    listed = gathered._best(means[0] @ means[1].mT * 0.25, knobs, False) | static
    expected = gathered._lists(torch.nn.functional.pad(listed, (0, 1), value=True))
    assert_same((indices, counts), expected)


def test_a_captured_graph_sees_new_knobs_and_new_inputs() -> None:
    q, k, static = on_gpu()
    knobs = Knobs(keep=0.2, cutoff=0.0)
    tensor = knobs.tensor(q.device)
    select(q, k, static, tensor, VIDEO)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = select(q, k, static, tensor, VIDEO)
    for keep, cutoff in ((0.5, 0.0), (0.1, 0.8)):
        knobs.keep, knobs.cutoff = keep, cutoff
        q.copy_(q.flip(2))
        graph.replay()
        assert_same(captured, defined(q, k, static, tensor, VIDEO))


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
def test_the_current_stream_is_used_and_nothing_waits() -> None:
    q, k, static = on_gpu()
    knobs = make_knobs(0.3, 0.4, device="cuda")
    expected = defined(q, k, static, knobs, VIDEO)
    select(q, k, static, knobs, VIDEO)
    late = torch.zeros_like(q)
    side = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        torch.cuda._sleep(50_000_000)
        late.copy_(q)
        torch.cuda.set_sync_debug_mode("error")
        try:
            found = select(late, k, static, knobs, VIDEO)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert not side.query()
    side.synchronize()
    assert_same(found, expected)


@pytest.mark.filterwarnings("ignore:The CUDA Graph is empty")  # Inductor captures one to warm up
def test_cuda_graphs_of_inductor() -> None:
    q, k, static = on_gpu()
    knobs = make_knobs(0.3, 0.4, device="cuda")

    @torch.compile(fullgraph=True, mode="reduce-overhead")
    def step(q: torch.Tensor, k: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        indices, counts = select(2 * q, k, static, knobs, VIDEO)
        return indices + 0, counts + 0

    expected = defined(2 * q, k, static, knobs, VIDEO)
    for _ in range(4):
        assert_same(step(q, k), expected)
