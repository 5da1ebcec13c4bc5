"""What happens to a graph, in order. Each pass is a file; its first lines say what it does and what that costs."""

from __future__ import annotations

import dataclasses
import enum
import time
from collections.abc import Callable
from typing import Literal

from torch.fx import GraphModule

from jenga_compile.passes.add_heads import add_heads
from jenga_compile.passes.carve_attention import carve_attention
from jenga_compile.passes.enter_other_attention import enter_other_attention
from jenga_compile.passes.hoist_reorder import hoist_reorder
from jenga_compile.passes.infer_layout import infer_layout
from jenga_compile.passes.ledger import Ledger
from jenga_compile.passes.mark_attention import mark_attention
from jenga_compile.passes.normalise_mask import normalise_mask
from jenga_compile.passes.open_attention_layers import open_attention_layers
from jenga_compile.passes.recognise_attention import recognise_attention
from jenga_compile.passes.slice_splits import slice_splits


class Tier(enum.Enum):
    """What a pass may change in the numbers, and so what its tests owe."""

    EXACT = "bit for bit the same"
    ROUNDING = "the same up to a derived rounding budget"
    LOSSY = "another result, with a measured quality and speed"


@dataclasses.dataclass(frozen=True)
class Pass:
    run: Callable[[GraphModule, Ledger], None]
    level: Literal["dynamo", "aten"]
    tier: Tier

    @property
    def name(self) -> str:
        return self.run.__name__


PIPELINE = (
    Pass(recognise_attention, "dynamo", Tier.ROUNDING),
    Pass(open_attention_layers, "dynamo", Tier.ROUNDING),
    Pass(add_heads, "dynamo", Tier.ROUNDING),
    Pass(mark_attention, "dynamo", Tier.EXACT),
    Pass(enter_other_attention, "dynamo", Tier.EXACT),
    Pass(slice_splits, "aten", Tier.EXACT),
    Pass(normalise_mask, "aten", Tier.ROUNDING),
    Pass(infer_layout, "aten", Tier.EXACT),
    Pass(carve_attention, "aten", Tier.LOSSY),
    Pass(hoist_reorder, "aten", Tier.ROUNDING),
)


def run_passes(level: Literal["dynamo", "aten"], gm: GraphModule, ledger: Ledger) -> None:
    """Apply the passes of one level, in the order of `PIPELINE`."""
    for step in PIPELINE:
        if step.level == level:
            started = time.perf_counter()
            step.run(gm, ledger)
            gm.graph.lint()
            ledger.add_seconds(step.name, time.perf_counter() - started)
