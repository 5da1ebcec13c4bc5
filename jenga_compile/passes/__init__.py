"""What happens to a graph, in order. Each pass is a file; its first lines say what it does and what that costs."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable
from typing import Literal

from torch.fx import GraphModule

from jenga_compile.passes.carve_attention import carve_attention
from jenga_compile.passes.enter_other_attention import enter_other_attention
from jenga_compile.passes.ledger import Ledger
from jenga_compile.passes.mark_attention import mark_attention


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
    Pass(mark_attention, "dynamo", Tier.EXACT),
    Pass(enter_other_attention, "dynamo", Tier.EXACT),
    Pass(carve_attention, "aten", Tier.LOSSY),
)


def run_passes(level: Literal["dynamo", "aten"], gm: GraphModule, ledger: Ledger) -> None:
    """Apply the passes of one level, in the order of `PIPELINE`."""
    for step in PIPELINE:
        if step.level == level:
            step.run(gm, ledger)
            gm.graph.lint()
