"""Which sites are carved, which masks are honoured, and that the rewritten graph is what we say."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from jenga_compile import Report, explain
from jenga_compile.backend import jenga
from jenga_compile.block_mask import Own, PerHead, Window
from tests.passes.plain_dit import PlainDiT, latents, prompt

GRID_TOKENS, TEXT = 144, 5
TOKENS = GRID_TOKENS + TEXT


def key_padding(batch: int = 2) -> Tensor:
    mask = torch.ones(batch, 1, 1, TOKENS, dtype=torch.bool)
    mask[0, ..., -2:] = False
    return mask


CARVED_MASKS = {
    "per sample": key_padding(),
    "shared by the batch": key_padding(1),
    "one row": key_padding(1)[0, 0],
}

LEFT_MASKS = {
    "differs between queries": (torch.ones(TOKENS, TOKENS).tril().bool(), "differs between queries"),
    "differs between heads": (torch.ones(1, 2, 1, TOKENS).bool(), "differs between heads"),
    "additive": (torch.zeros(1, 1, 1, TOKENS), "additive mask of unknown values"),
}


def explained(mask: Tensor | None = None, **options: Any) -> Report:
    torch._dynamo.reset()
    return explain(PlainDiT(layers=1), latents(), prompt(TEXT), mask, options={"min_blocks": 1, **options})


@pytest.mark.parametrize("name", CARVED_MASKS)
def test_key_padding_is_carved_and_honoured(name: str) -> None:
    mask = CARVED_MASKS[name]
    assert explained(mask).sites[0].decision == "carved"
    model, inputs = PlainDiT(layers=1), (latents(), prompt(TEXT), mask)
    torch._dynamo.reset()
    options = {"keep": 1.0, "min_blocks": 1, "inner": "eager"}
    with torch.no_grad():
        out = torch.compile(model, backend=jenga, options=options, fullgraph=True)(*inputs)
        torch.testing.assert_close(out, model(*inputs), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", LEFT_MASKS)
def test_other_masks_are_left(name: str) -> None:
    mask, reason = LEFT_MASKS[name]
    (site,) = explained(mask).sites
    assert site.decision == "left"
    assert reason in site.reason


@pytest.mark.parametrize("shape", [(2, 1, TOKENS, TOKENS), (2, 2, 1, TOKENS), (2, 2, TOKENS, TOKENS)])
def test_a_mask_stretched_inside_the_model_is_traced_to_its_origin(shape: tuple[int, ...]) -> None:
    class Stretching(PlainDiT):
        def forward(self, x: Tensor, text: Tensor, mask: Tensor | None = None) -> Tensor:
            assert mask is not None
            return super().forward(x, text, mask.expand(shape))

    torch._dynamo.reset()
    inputs = (latents(), prompt(TEXT), key_padding())
    (site,) = explain(Stretching(layers=1), *inputs, options={"min_blocks": 1}).sites
    assert site.decision == "carved"


def test_short_sites_are_left() -> None:
    (site,) = explained(min_blocks=8).sites
    assert site.reason == "short: 149 tokens are fewer than min_blocks=8 blocks of 128"
    assert not site.intended


def test_text_does_not_count_as_blocks() -> None:
    torch._dynamo.reset()
    (site,) = explain(PlainDiT(layers=1), latents(), prompt(200), options={"min_blocks": 3}).sites
    assert site.reason == "short: 144 video tokens are fewer than min_blocks=3 blocks of 128"


def test_the_curve_is_the_given_one_or_the_familys() -> None:
    assert explained(curve="linear").sites[0].curve == "linear"
    assert explained().sites[0].curve == "gilbert"


def test_a_mask_of_more_heads_than_the_call_has_is_left() -> None:
    two, three = (PerHead((Own(), *(Window(4.0),) * more)) for more in (1, 2))
    assert [site.decision for site in explained(blocks=two).sites] == ["carved"]
    (site,) = explained(blocks=three).sites
    assert site.decision == "left"
    assert "the block mask has 3 kinds of heads, the call 2: " in site.reason
