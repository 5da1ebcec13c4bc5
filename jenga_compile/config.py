"""What to approximate and how to compile, as frozen values: documented under each field, validated once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, get_args

from jenga_compile.errors import ModeAndOptions, OptionOfWrongType, OptionOutOfRange, OptionsAtOdds, UnknownOption, hint
from jenga_compile.grid import BLOCK, CurveKind, TextSide
from jenga_compile.scalars import plain_float, plain_int

if TYPE_CHECKING:
    from jenga_compile.block_mask import Mask, Split
    from jenga_compile.kernels.knobs import Knobs
    from jenga_compile.sites import Report

Inner = Literal["inductor", "aot_eager", "eager"]

Kernel = Literal["auto", "gathered", "portable", "hopper", "fp8", "flash4"]
"""Who computes block-sparse attention: `kernels/block_sparse_attention/providers.py`."""


def _require_type(holds: bool, name: str, value: object, expected: str, way_out: str) -> None:
    if not holds:
        raise OptionOfWrongType(name=name, value=value, found=type(value).__name__, expected=expected, way_out=way_out)


def _require(holds: bool, name: str, value: object, expected: str, way_out: str) -> None:
    if not holds:
        raise OptionOutOfRange(name=name, value=value, expected=expected, way_out=way_out)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Carving:
    """How an attention site is carved: what is lost, and how much of it."""

    keep: float = 0.3
    """Fraction of the video blocks that every query block attends to at least, in (0, 1]. 1.0 keeps all."""

    cutoff: float = 0.3
    """Softmax mass that the kept video blocks of a query block must exceed, in [0, 1). 0.0 switches the rule off."""

    curve: CurveKind | None = None
    """Order of the tokens inside the grid: 3D generalized Hilbert, a 2D curve a frame, or plain raster. `None` takes
    what the model's family prefers (`models/`), 3D Hilbert where it is unknown."""

    adjacency: bool = True
    """Whether a query block always sees the blocks that touch it in space and time."""

    blocks: Mask | None = None
    """Which blocks are seen, as a value of `jenga_compile.block_mask`, in place of importance joined by adjacency. An
    `Importance` in it stands for `keep` and `cutoff`. The condition is always seen."""

    knobs: Knobs | None = None
    """Live values of `keep` and `cutoff` (`jenga_compile.Knobs`): set between calls, they hold from the next call on,
    and nothing is compiled anew."""

    min_blocks: int = 8
    """Sites with fewer video blocks than this stay dense: carving would cost more than it saves."""

    @property
    def longest_short(self) -> int:
        """The most tokens that are fewer blocks than `min_blocks`."""
        return (self.min_blocks - 1) * BLOCK

    def is_short(self, tokens: int) -> bool:
        """Whether so many tokens are fewer blocks than `min_blocks`."""
        return tokens <= self.longest_short

    def is_meant(self, queries: int, keys: int) -> bool:
        """Whether attention of these sizes is large self-attention, which leaving dense costs speed."""
        return queries == keys and not self.is_short(queries)

    def split(self) -> Split:
        """What the operators run: the given mask, or importance beside what is always seen.

        Knobs, which a live choice reads instead of the `importance` in it, are not looked at.

        Raises:
            ImportancesDiffer: there are two different `Importance` values in `blocks`.
        """
        # torch comes with it, and settings are read before that is imported.
        from jenga_compile.block_mask import Adjacency, Condition, Importance, Own, split

        blocks = self.blocks
        if blocks is None:
            blocks = Importance(self.keep, self.cutoff) | (Adjacency() if self.adjacency else Own())
        return split(blocks | Condition())

    def __post_init__(self) -> None:
        for name, value in (("keep", self.keep), ("cutoff", self.cutoff)):
            number = plain_float(value)
            _require_type(number is not None, name, value, "a number", "Pass a fraction, e.g. 0.3.")
            object.__setattr__(self, name, number)
        _require_type(type(self.adjacency) is bool, "adjacency", self.adjacency, "True or False", "Pass one of them.")
        count = plain_int(self.min_blocks)
        way_out = "Pass a count of blocks, e.g. 8."
        _require_type(count is not None, "min_blocks", self.min_blocks, "an integer", way_out)
        object.__setattr__(self, "min_blocks", count)
        _require(0.0 < self.keep <= 1.0, "keep", self.keep, "(0, 1]", "Use 1.0 to keep every block.")
        _require(0.0 <= self.cutoff < 1.0, "cutoff", self.cutoff, "[0, 1)", "Use 0.0 to switch the rule off.")
        _require(
            self.curve in (None, *get_args(CurveKind)),
            "curve",
            self.curve,
            str(get_args(CurveKind)),
            "Pick one of them.",
        )
        _require(
            self.min_blocks >= 1,
            "min_blocks",
            self.min_blocks,
            "[1, inf)",
            "Use 1 to carve every video site.",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """All that `torch.compile(model, backend="jenga", options={...})` takes."""

    carving: Carving = Carving()
    """What to approximate; its fields are given flat, as `options={"keep": 0.2}`."""

    grid: tuple[int, int, int] | None = None
    """Token grid (t, h, w) of the video, when the graph does not show it. `None` infers it."""

    text: TextSide | None = None
    """Side on which the condition tokens stand, when `grid` is given and the graph does not show it."""

    strict: bool = False
    """Whether self-attention that was meant to be carved and cannot be is an error instead of a warning."""

    mode: str | None = None
    """Inductor's mode ("max-autotune", "reduce-overhead", ...); `torch.compile` forbids `mode=` beside `options=`."""

    inner: Inner = "inductor"
    """What runs the rewritten graph: Inductor, or PyTorch op by op, after Inductor's decompositions ("aot_eager") or
    without them ("eager"). The last two are for debugging and bisecting."""

    kernel: Kernel = "auto"
    """Who computes the attention that is carved. "auto" takes the fastest exact kernel that can; "fp8" rounds to 8 bits
    as well and is faster. One asked for by name that cannot is an error when the model runs."""

    hoist: bool = True
    """Whether tokens are reordered once a graph, where that is proven; else every site does it by itself."""

    self_check: bool = False
    """Whether the compiled graph is run in two token orders when it is first called, to see that nothing but attention
    depends on them. Costs two dense calls."""

    on_report: Callable[[Report], None] | None = None
    """Called with the report of every graph as it is compiled."""

    def __post_init__(self) -> None:
        for name in ("strict", "hoist", "self_check"):
            value = getattr(self, name)
            _require_type(type(value) is bool, name, value, "True or False", "Pass one of them.")
        _require_type(
            self.mode is None or isinstance(self.mode, str), "mode", self.mode, "a string", "Pass e.g. 'max-autotune'."
        )
        _require_type(
            self.on_report is None or callable(self.on_report),
            "on_report",
            self.on_report,
            "a callable",
            "Pass a function of one report, e.g. print.",
        )
        grid = ("three positive integers (t, h, w)", "Pass the token grid after patchifying, e.g. (32, 45, 80).")
        _require_type(self.grid is None or isinstance(self.grid, tuple), "grid", self.grid, *grid)
        if self.grid is not None:
            sizes = tuple(map(plain_int, self.grid))
            _require(len(sizes) == 3 and all(size is not None and size > 0 for size in sizes), "grid", self.grid, *grid)
            object.__setattr__(self, "grid", sizes)
        _require(
            self.text in (None, *get_args(TextSide)),
            "text",
            self.text,
            str(get_args(TextSide)),
            "Pick one of them.",
        )
        for name, kinds in (("inner", get_args(Inner)), ("kernel", get_args(Kernel))):
            _require(getattr(self, name) in kinds, name, getattr(self, name), str(kinds), "Pick one of them.")
        if self.text is not None and self.grid is None:
            raise OptionsAtOdds(
                name="text", value=self.text, beside="without grid", way_out="Give grid=(t, h, w) too, or leave it out."
            )
        if self.mode is not None and self.inner != "inductor":
            raise OptionsAtOdds(
                name="mode",
                value=self.mode,
                beside=f"with inner={self.inner!r}",
                way_out="Modes are Inductor's: leave out one of the two.",
            )


def parse_options(options: Mapping[str, Any] | None, mode: str | None = None) -> Options:
    """Options as `torch.compile` hands them over: one flat dictionary, unknown keys refused."""
    as_expected = options is None or isinstance(options, Mapping)
    _require_type(as_expected, "options", options, "a dictionary", "Pass e.g. {'keep': 0.3}.")
    given = dict(options or {})
    carving_keys = {field.name for field in dataclasses.fields(Carving)}
    other_keys = {field.name for field in dataclasses.fields(Options)} - {"carving"}
    for key in given:
        if key not in carving_keys | other_keys:
            valid = sorted(carving_keys | other_keys)
            raise UnknownOption(name=key, hint=hint(str(key), valid), valid=", ".join(valid))
    for key, holder, way_out in _IDLE:
        if key in given and given.get(holder) is not None:
            raise OptionsAtOdds(name=key, value=given[key], beside=f"beside {holder}", way_out=way_out)
    if mode is not None and "mode" in given:
        raise ModeAndOptions(mode=mode, option=given["mode"])
    rest = {key: value for key, value in given.items() if key in other_keys}
    if isinstance(rest.get("grid"), list):
        rest["grid"] = tuple(rest["grid"])
    if mode is not None:
        rest["mode"] = mode
    carving = Carving(**{key: value for key, value in given.items() if key in carving_keys})
    return Options(carving=carving, **rest)


_IDLE = (
    ("keep", "blocks", "Leave it out, or give the mask an Importance(keep=...)."),
    ("cutoff", "blocks", "Leave it out, or give the mask an Importance(cutoff=...)."),
    ("adjacency", "blocks", "Leave it out, and let the mask have an Adjacency() or not."),
    ("keep", "knobs", "Leave it out, and set it on the Knobs."),
    ("cutoff", "knobs", "Leave it out, and set it on the Knobs."),
)
"""Options that another takes the place of."""
