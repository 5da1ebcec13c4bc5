"""A mask with importance in it, taken apart for the operator."""

from __future__ import annotations

import dataclasses
import math

from jenga_compile.block_mask.algebra import Everything, Mask, Nothing
from jenga_compile.block_mask.given import Importance
from jenga_compile.errors import ImportancesDiffer


@dataclasses.dataclass(frozen=True)
class Split:
    """A mask as `always | (importance & allowed)`; `always` and `allowed` are static."""

    importance: Importance | None
    """What chooses at run time; `None` for a static mask, which `always` then is, and `allowed` too."""

    always: Mask
    """What is seen whatever importance chooses."""

    allowed: Mask
    """All that may be seen: what importance chooses elsewhere is not. A superset of `always`."""

    sees_condition: bool
    """Whether every row of every head sees all of the condition. Importance chooses among video alone, so the
    condition is never its choice. The operators keep the condition for every row and can run no other mask."""

    @property
    def heads(self) -> int:
        """After how many heads the masks repeat."""
        return math.lcm(self.always.heads, self.allowed.heads)


def split(mask: Mask) -> Split:
    """Take the importance out of a mask.

    `|` and `&` are monotone, so a mask with one importance in it, however often, is
    `mask with nothing in its place | (importance & mask with everything in its place)`.

    Raises:
        ImportancesDiffer: there are two different `Importance` values in the mask, in one head or in several.
    """
    found = sorted(mask.importances, key=repr)
    if len(found) > 1:
        raise ImportancesDiffer(first=found[0], second=found[1])
    importance = found[0] if found else None
    assert importance is None or isinstance(importance, Importance)
    return Split(
        importance=importance,
        always=mask.replace_importance(Nothing()),
        allowed=mask.replace_importance(Everything()),
        sees_condition=mask.sees_condition,
    )
