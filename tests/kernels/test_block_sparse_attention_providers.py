"""Who computes attention over lists: the kernel for given tensors, and the reason where one cannot."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses import FakeTensorMode

from jenga_compile.errors import KernelUnavailable, NoKernelWorks, OptionOutOfRange
from jenga_compile.kernels.block_sparse_attention import providers

pytest.importorskip("triton", reason="needs Triton, which has wheels for Linux only", exc_type=ImportError)

from jenga_compile.kernels import tuning
from jenga_compile.kernels.block_sparse_attention import portable, problem

HALF = torch.bfloat16
version_of = providers._version
attention_problem = problem.attention_problem


@pytest.fixture(autouse=True)
def gpu(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A GPU that is not there, Hopper unless told otherwise, on which the Hopper kernel proves itself."""
    chip = SimpleNamespace(capability=(9, 0), proves=lambda: "hopper", portable=lambda: True, proven=[], allowed=[])

    def fastest(what: str, *, source: Path, **rest: object) -> str:
        chip.proven.append(what)
        chip.allowed.append(rest["allowed"])
        assert source.is_file()
        return chip.proves()

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: chip.capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Planted GPU")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(problem, "attention_problem", lambda *_: SimpleNamespace(solved_by=None, truth=None))
    monkeypatch.setattr(tuning, "fastest", fastest)
    monkeypatch.setattr(tuning, "remembered", lambda *_, **__: None)
    monkeypatch.setattr(portable, "proven", lambda q, v: chip.portable())
    monkeypatch.setattr(problem, "_settled", {})
    monkeypatch.setattr(providers, "_warned", set())
    monkeypatch.setattr(providers, "_version", lambda package: "4.1")
    providers._gluon_missing.cache_clear()
    return chip


def tensor(dtype: torch.dtype = HALF, dim: int = 128, device: str = "cuda") -> torch.Tensor:
    """[1, 2, 300, dim] without memory."""
    with FakeTensorMode():
        return torch.empty(1, 2, 300, dim, dtype=dtype, device=device)


def chosen(
    x: torch.Tensor, v: torch.Tensor | None = None, scale: float = 0.1, kernel: str = "auto", masked: bool = False
) -> str:
    """Last part of the name of the module that computes it."""
    return providers.find(kernel, x, x if v is None else v, scale, masked).__module__.rpartition(".")[2]


def refused(
    kernel: str, x: torch.Tensor, v: torch.Tensor | None = None, scale: float = 0.1, masked: bool = False
) -> str:
    with pytest.raises(KernelUnavailable) as caught:
        chosen(x, v, scale, kernel, masked)
    return str(caught.value)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: tensor(), "hopper"),
        (lambda: tensor(torch.float16, 64), "hopper"),
        (lambda: tensor(dim=72), "hopper"),
        (lambda: tensor(dim=256), "portable"),
        (lambda: tensor(dim=20), "portable"),
        (lambda: tensor(torch.float32), "portable"),
        (lambda: tensor(torch.float64), "gathered"),
        (lambda: tensor(dim=264), "gathered"),
        (lambda: tensor(device="cpu"), "gathered"),
    ],
)
def test_auto_takes_the_lowest_that_can(make: Callable[[], torch.Tensor], expected: str) -> None:
    assert chosen(make()) == expected
    assert chosen(make(), masked=True) == expected
    assert chosen(make(), kernel=expected) == expected
    assert chosen(make(), kernel="gathered") == "gathered"


def test_auto_on_other_gpus(gpu: SimpleNamespace) -> None:
    for gpu.capability in ((8, 0), (10, 0), (12, 0)):
        assert chosen(tensor()) == "portable"


def test_a_scale_that_turns_the_order_round_is_for_torch() -> None:
    assert chosen(tensor(), scale=0.0) == "gathered"
    assert "it needs a positive scale, and this is -1.0" in refused("portable", tensor(), scale=-1.0)


def test_there_is_no_such_kernel() -> None:
    with pytest.raises(OptionOutOfRange, match="kernel='hoper'"):
        chosen(tensor(), kernel="hoper")


@pytest.mark.parametrize("kernel", ["hopper", "portable", "fp8", "flash4"])
def test_a_cpu_has_no_kernels(kernel: str) -> None:
    assert f"kernel='{kernel}'" in (text := refused(kernel, tensor(device="cpu")))
    assert "it needs a GPU, and the tensors are on cpu" in text


def test_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "Triton is not installed" in refused("portable", tensor())
    assert chosen(tensor()) == "gathered"


@pytest.mark.parametrize(
    ("kernel", "make", "why"),
    [
        (
            "portable",
            lambda: (tensor(torch.float64), None),
            "it computes bfloat16, float16, float32, not torch.float64",
        ),
        ("portable", lambda: (tensor(), tensor(dim=260)), "its largest head dim is 256, and this is 260"),
        ("hopper", lambda: (tensor(torch.float32), None), "it computes bfloat16, float16, not torch.float32"),
        ("hopper", lambda: (tensor(), tensor(dim=64)), "equal head dims in eights up to 128, and these are 128 and 64"),
        ("hopper", lambda: (tensor(dim=136), None), "up to 128, and these are 136 and 136"),
        ("hopper", lambda: (tensor(dim=60), None), "in eights up to 128, and these are 60 and 60"),
        ("fp8", lambda: (tensor(torch.float32), None), "it computes bfloat16, float16, not torch.float32"),
        ("fp8", lambda: (tensor(), tensor(dim=64)), "equal head dims in eights up to 128, and these are 128 and 64"),
        ("fp8", lambda: (tensor(dim=136), None), "up to 128, and these are 136 and 136"),
        ("fp8", lambda: (tensor(dim=60), None), "in eights up to 128, and these are 60 and 60"),
        ("flash4", lambda: (tensor(torch.float32), None), "it computes bfloat16, float16, not torch.float32"),
        ("flash4", lambda: (tensor(dim=256), None), "in eights up to 128, and these are 256 and 256"),
    ],
)
def test_dtypes_and_head_dims(
    kernel: str, make: Callable[[], tuple[torch.Tensor, torch.Tensor | None]], why: str
) -> None:
    assert why in refused(kernel, *make())


@pytest.mark.parametrize("kernel", ["hopper", "fp8", "flash4"])
def test_hopper_kernels_want_hopper(kernel: str, gpu: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu.capability = (10, 0)
    assert "it is made for Hopper GPUs, not for Planted GPU" in refused(kernel, tensor())
    gpu.capability = (9, 0)
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert "it is made for Hopper GPUs, not for Planted GPU" in refused(kernel, tensor())


def test_flash_attention_is_a_package_of_its_own(gpu: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    assert chosen(tensor(), kernel="flash4") == "flash4"
    assert gpu.proven == ["flash-attn-4 4.1 torch.bfloat16 128"]
    assert "it takes no key mask" in refused("flash4", tensor(), masked=True)
    monkeypatch.setattr(providers, "_version", lambda package: None)
    assert "flash-attn-4 is not installed" in refused("flash4", tensor())
    assert chosen(tensor()) == "hopper"


def test_fp8_is_for_who_asks_and_proves_itself_within_what_eight_bits_cost(gpu: SimpleNamespace) -> None:
    assert chosen(tensor(), kernel="fp8") == chosen(tensor(), kernel="fp8", masked=True) == "hopper_fp8"
    assert gpu.proven == ["fp8 torch.bfloat16 128"]
    assert gpu.allowed == [0.1]
    assert chosen(tensor(dim=72)) == "hopper"
    assert gpu.allowed == [0.1, None]

    def fails() -> str:
        raise NoKernelWorks(what="fp8", device="cuda", why="relative error 0.3")

    gpu.proves = fails
    with pytest.raises(NoKernelWorks, match="relative error"):
        chosen(tensor(dim=64), kernel="fp8")
    assert "it needs a positive scale" in refused("fp8", tensor(), scale=-1.0)


@pytest.mark.parametrize("dim", [8, 128])
def test_what_fp8_is_allowed_is_twice_what_rounding_costs(dim: int) -> None:
    """Plain rounding to e4m3, a scale a head, on some rows of the problem on which kernels prove themselves."""
    made = attention_problem(torch.device("cpu"), HALF, dim, dim)
    q, k, v, indices, counts, knobs, video, _, scale = made.arguments
    eight = (
        (x * (s := 448 / x.abs().max())).to(torch.float8_e4m3fn).float() / s
        for x in (y[0, 0].float() for y in (q, k, v))
    )
    q, k, v = eight
    row, block = 20, torch.arange(128)
    listed = indices[0, 0, row, : counts[0, 0, row]].long()
    starts = torch.where(listed < 64, listed * 128, video + (listed - 64) * 128)
    tokens = starts[:, None] + block
    tokens = tokens[tokens < torch.where(listed < 64, video, k.shape[0])[:, None]]
    logits = q[row * 128 + block] @ k[tokens].T * scale + (tokens >= video) * knobs[2]
    weights = (logits - logits.amax(-1, keepdim=True)).exp()
    rounded = (weights * 448).to(torch.float8_e4m3fn).float() / 448
    out = rounded @ v[tokens] / weights.sum(-1, keepdim=True)
    truth = made.truth[0, 0, row * 128 + block]
    error = float((out - truth).norm() / truth.norm())
    assert 0.04 < error < providers._FP8_ALLOWED < 2 * error


def test_the_version_of_a_package_is_read() -> None:
    assert version_of("torch") == importlib.metadata.version("torch")
    assert version_of("no-such-package") is None


def test_an_other_gluon_leaves_the_portable_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jenga_compile.kernels.block_sparse_attention.hopper", None)
    monkeypatch.delattr("jenga_compile.kernels.block_sparse_attention.hopper", raising=False)
    assert "Triton's Gluon differs from what it was written for" in refused("hopper", tensor())
    assert chosen(tensor()) == "portable"
    providers._gluon_missing.cache_clear()


def test_a_kernel_proves_itself_once_for_a_dtype_and_head_dim(gpu: SimpleNamespace) -> None:
    for _ in range(2):
        assert chosen(tensor()) == chosen(tensor(dim=64)) == chosen(tensor(torch.float16)) == "hopper"
    assert gpu.proven == ["hopper torch.bfloat16 128", "hopper torch.bfloat16 64", "hopper torch.float16 128"]


def test_a_kernel_that_fails_is_left_out_for_good(gpu: SimpleNamespace) -> None:
    def fails() -> str:
        raise NoKernelWorks(what="hopper", device="cuda", why="relative error inf")

    gpu.proves = fails
    assert chosen(tensor()) == chosen(tensor()) == "portable"
    with pytest.raises(NoKernelWorks, match="relative error inf"):
        chosen(tensor(), kernel="hopper")
    assert len(gpu.proven) == 1
    errors = []
    for _ in range(2):
        with pytest.raises(NoKernelWorks) as raised:
            chosen(tensor(), kernel="hopper")
        errors.append(raised.value)
    assert errors[0] is not errors[1]  # each would keep the tensors of its call
    gpu.portable = fails
    assert chosen(tensor()) == "gathered"
    with pytest.raises(NoKernelWorks, match="relative error inf"):
        chosen(tensor(), kernel="portable")


def test_without_memory_for_a_proof_nothing_is_held_against_a_kernel(gpu: SimpleNamespace) -> None:
    def full() -> str:
        raise torch.OutOfMemoryError

    gpu.proves = gpu.portable = full
    assert chosen(tensor()) == "gathered"
    assert "no memory left" in refused("hopper", tensor())
    assert "no memory left" in refused("portable", tensor())
    gpu.proves = lambda: "hopper"
    assert chosen(tensor()) == "hopper"


def test_portable_is_for_what_has_tensor_cores_of_two_byte_numbers(gpu: SimpleNamespace) -> None:
    gpu.capability = (7, 5)
    assert chosen(tensor()) == "gathered"
    assert "compute capability 8.0" in refused("portable", tensor())


def test_nothing_is_proven_while_a_graph_is_captured(gpu: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert "it has not proven itself yet" in refused("hopper", tensor())
    assert chosen(tensor()) == "portable"
    gpu.portable = lambda: False
    assert chosen(tensor()) == "gathered"
    assert "it has not proven itself yet" in refused("portable", tensor())
    assert gpu.proven == []
    monkeypatch.setattr(tuning, "remembered", lambda *_, **__: "hopper")
    assert chosen(tensor()) == "hopper"
    monkeypatch.setattr(tuning, "remembered", lambda *_, **__: None)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    assert chosen(tensor()) == "hopper"
