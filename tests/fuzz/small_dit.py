"""The DiT that a configuration describes, in plain PyTorch, with random weights and inputs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.fuzz.configuration import DTYPES, UNREADABLE, Configuration, Grid
from tests.fuzz.positions import CHANNELS, Embedding, Unembedding, rotary_angles, rotate, sincos, tables_of
from tests.fuzz.spelling import attend, build_mask, key_mask

Stand_in = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""(q, k, v [B, H, L, D], bool key mask [B, L] or None) -> [B, L, H * D]"""


class Context:
    """What all blocks are given beside their tokens."""

    def __init__(self, c: Configuration, grid: Grid, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.c, self.frame, self.video = c, grid[1] * grid[2], math.prod(grid)
        self.condition: Tensor | None = None
        self.text_condition: Tensor | None = None
        self.rotation: tuple[Tensor, ...] | None = None
        self.valid: Tensor | None = None
        self.mask: Tensor | None = None
        self.text: Tensor | None = None

    @property
    def around(self) -> tuple[int, int]:
        """Tokens of the sequence before and after the text."""
        others = self.c.registers + self.video
        return (0, others) if self.c.side == "before" else (others, 0)

    def start_in(self, tokens: int) -> int:
        """Where the video begins in a stream of so many tokens, which holds the video and maybe the text."""
        return tokens - self.video if self.c.side == "before" else self.c.registers

    def build_mask(self) -> Tensor | None:
        c = self.c
        if c.mask == "none" or self.valid is None or c.mask in ("given", *UNREADABLE):
            return self.mask
        around = self.around if c.is_joint else (0, 0)
        queries = c.registers + self.video + (self.valid.shape[1] if c.is_joint else 0)
        return build_mask(c, self.valid, queries, around, self.dtype)


class Norm(nn.Module):
    def __init__(self, kind: str, width: int) -> None:
        super().__init__()
        self.kind, self.weight = kind, nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "layer":
            return F.layer_norm(x, (x.shape[-1],), self.weight.to(x.dtype))
        precise = x.to(torch.promote_types(x.dtype, torch.float32))
        return (precise * torch.rsqrt(precise.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype) * self.weight


class Projection(nn.Module):
    """Tokens [B, L, W] to queries, and `source` to keys and values, each [B, L, H, D]."""

    def __init__(self, c: Configuration, kind: str) -> None:
        super().__init__()
        self.c, self.kind = c, kind
        counts = (1, 1, 1) if kind == "separate" else (3,)
        self.layers = nn.ModuleList([nn.Linear(c.width, count * c.width) for count in counts])
        if c.qk_norm != "none":
            size = c.head_dim if c.qk_norm == "head" else c.width
            self.norm_q, self.norm_k = Norm("rms", size), Norm("rms", size)

    def forward(self, x: Tensor, source: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        heads, size = self.c.heads, self.c.head_dim
        if self.kind == "separate":
            sources = (x, x, x) if source is None else (x, source, source)
            wide = [layer(tokens) for layer, tokens in zip(self.layers, sources, strict=True)]
            q, k, v = (part.unflatten(-1, (heads, size)) for part in wide)
        elif self.kind == "chunk":
            q, k, v = (part.view(*part.shape[:2], heads, size) for part in self.layers[0](x).chunk(3, dim=-1))
        elif self.kind == "unflatten":
            q, k, v = self.layers[0](x).unflatten(-1, (3, heads, size)).permute(2, 0, 1, 3, 4)
        else:
            q, k, v = self.layers[0](x).view(x.shape[0], x.shape[1], 3, heads, size).unbind(2)
        return self._normed(q, "norm_q"), self._normed(k, "norm_k"), v

    def _normed(self, x: Tensor, name: str) -> Tensor:
        if self.c.qk_norm == "none":
            return x
        if self.c.qk_norm == "head":
            return getattr(self, name)(x)
        return getattr(self, name)(x.flatten(2)).unflatten(-1, (self.c.heads, self.c.head_dim))


class SelfAttention(nn.Module):
    """Attention over one stream, or over the text's and the video's together."""

    def __init__(self, c: Configuration, *, dual: bool, over_video: bool = True) -> None:
        super().__init__()
        self.c, self.over_video = c, over_video
        self.projections = nn.ModuleList([Projection(c, c.projection) for _ in range(1 + dual)])
        self.stand_in: Stand_in | None = None

    def forward(self, streams: list[Tensor], context: Context) -> Tensor:
        parts = [projection(x) for projection, x in zip(self.projections, streams, strict=True)]
        if len(parts) == 2 and self.c.side == "before":
            parts.reverse()
        q, k, v = (torch.cat(x, dim=1) if len(x) > 1 else x[0] for x in zip(*parts, strict=True))
        if not self.over_video:
            return attend(self.c, *(x.transpose(1, 2) for x in (q, k, v)), None)
        if self.c.heads_first:
            q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        if context.rotation is not None:
            q, k = (self._rotated(x, context) for x in (q, k))
        if not self.c.heads_first:
            q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        joint = self.c.is_joint
        if self.stand_in is not None:
            key = key_mask(context.valid, context.around) if joint and context.valid is not None else None
            return self.stand_in(q, k, v, key)
        mask = context.build_mask() if joint and self.c.mask_each else context.mask if joint else None
        return attend(self.c, q, k, v, mask)

    def _rotated(self, x: Tensor, context: Context) -> Tensor:
        dim = 2 if self.c.heads_first else 1
        assert context.rotation is not None
        if self.c.rotary_span == "joint":
            return rotate(x, context.rotation, self.c.rotary, dim)
        first = context.start_in(x.shape[dim])
        last = first + context.video
        before, video, after = (
            (x[:, :first], x[:, first:last], x[:, last:])
            if dim == 1
            else (x[:, :, :first], x[:, :, first:last], x[:, :, last:])
        )
        video = rotate(video, context.rotation, self.c.rotary, dim)
        pieces = [piece for piece in (before, video, after) if piece is video or piece.shape[dim] > 0]
        return torch.cat(pieces, dim=dim) if len(pieces) > 1 else video


class CrossAttention(nn.Module):
    def __init__(self, c: Configuration) -> None:
        super().__init__()
        self.c, self.projection, self.out = c, Projection(c, "separate"), nn.Linear(c.width, c.width)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        q, k, v = (part.transpose(1, 2) for part in self.projection(x, context.text))
        mask = context.build_mask() if self.c.mask_each else context.mask
        return self.out(attend(self.c, q, k, v, mask))


class Modulation(nn.Module):
    """Scales, shifts and gates tokens by a condition, [B, 1 or 2 or t or L, W]."""

    def __init__(self, c: Configuration, kind: str) -> None:
        super().__init__()
        self.c, self.kind, self.layer = c, kind, nn.Linear(c.width, 3 * c.width)

    def forward(self, condition: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        scale, shift, gate = self.layer(F.silu(condition)).chunk(3, dim=-1)
        return 1 + 0.2 * scale, 0.2 * shift, 0.5 + 0.2 * gate

    def apply_to(self, x: Tensor, scale: Tensor, shift: Tensor | None, context: Context) -> Tensor:
        def scaled(part: Tensor, own: Tensor, shifted: Tensor | None) -> Tensor:
            return part * own + shifted if shifted is not None else part * own

        if self.kind == "first_frame":
            first = context.start_in(x.shape[1])
            cuts = ((0, first, 1), (first, first + context.frame, 0), (first + context.frame, x.shape[1], 1))
            pieces = [
                scaled(x[:, a:b], scale[:, i : i + 1], None if shift is None else shift[:, i : i + 1])
                for a, b, i in cuts
                if b > a
            ]
            return torch.cat(pieces, dim=1)
        if self.kind == "frame" and x.shape[1] == context.video:
            frames = x.unflatten(1, (scale.shape[1], -1))
            return scaled(frames, scale[:, :, None], None if shift is None else shift[:, :, None]).flatten(1, 2)
        return scaled(x, scale, shift)


class Stream(nn.Module):
    """What a block does to one stream around attention: norm and modulation before, gate and feed-forward behind."""

    def __init__(self, c: Configuration, kind: str, feed_forward: str) -> None:
        super().__init__()
        self.feed_forward, width = feed_forward, c.width
        self.norm, self.out = Norm(c.norm, width), nn.Linear(width, width)
        self.modulation = Modulation(c, kind) if kind != "none" else None
        if feed_forward != "none":
            self.norm2 = Norm(c.norm, width)
            self.up = nn.Linear(width, width * (4 if feed_forward == "gated" else 2))
            self.down = nn.Linear(width * 2, width)

    def before(self, x: Tensor, condition: Tensor | None, context: Context) -> tuple[Tensor, Tensor | None]:
        """What attention sees, and the gate of what it gives."""
        x = self.norm(x)
        if self.modulation is None or condition is None:
            return x, None
        scale, shift, gate = self.modulation(condition)
        return self.modulation.apply_to(x, scale, shift, context), gate

    def behind(self, x: Tensor, seen: Tensor, attended: Tensor, gate: Tensor | None, context: Context) -> Tensor:
        attended = self.out(attended)
        if self.feed_forward == "parallel":
            attended = attended + self.down(F.gelu(self.up(seen)))
        if gate is not None and self.modulation is not None:
            attended = self.modulation.apply_to(attended, gate, None, context)
        x = x + attended
        if self.feed_forward == "gelu":
            x = x + self.down(F.gelu(self.up(self.norm2(x))))
        elif self.feed_forward == "gated":
            gated, plain = self.up(self.norm2(x)).chunk(2, dim=-1)
            x = x + self.down(F.silu(gated) * plain)
        return x


class Block(nn.Module):
    def __init__(self, c: Configuration, *, dual: bool) -> None:
        super().__init__()
        self.c = c
        self.attn = SelfAttention(c, dual=dual)
        self.video = Stream(c, c.modulation, c.feed_forward)
        self.text = Stream(c, "sample" if c.modulation != "none" else "none", c.feed_forward) if dual else None
        self.cross = CrossAttention(c) if c.streams == "cross" else None

    def forward(self, streams: list[Tensor], context: Context) -> list[Tensor]:
        seen, gate = self.video.before(streams[0], context.condition, context)
        if self.text is None:
            x = self.video.behind(streams[0], seen, self.attn([seen], context), gate, context)
            return [x if self.cross is None else x + self.cross(x, context)]
        read, text_gate = self.text.before(streams[1], context.text_condition, context)
        joint, count = self.attn([seen, read], context), read.shape[1]
        if self.c.side == "before":
            text, video = joint[:, :count], joint[:, count:]
        else:
            video, text = joint.split([seen.shape[1], count], dim=1)
        return [
            self.video.behind(streams[0], seen, video, gate, context),
            self.text.behind(streams[1], read, text, text_gate, context),
        ]


class SmallDiT(nn.Module):
    """Latents or tokens `x`, and what the configuration asks for beside them, in; `Unembedding`'s output out."""

    def __init__(self, c: Configuration) -> None:
        super().__init__()
        self.c = c
        self.embed, self.unembed = Embedding(c), Unembedding(c)
        if c.positions == "table":
            self.table = nn.Parameter(torch.empty(1, c.video, c.width))
        if c.registers:
            self.registers = nn.Parameter(torch.empty(1, c.registers, c.width))
        self.stored = rotary_angles(c.grid, c.head_dim) if c.angles == "stored" else None
        self.refiner = SelfAttention(c, dual=False, over_video=False) if c.refiner else None
        dual = {"dual": c.layers, "dual_then_single": 1}.get(c.streams, 0) if c.text else 0
        self.blocks = nn.ModuleList([Block(c, dual=place < dual) for place in range(c.layers)])

    def forward(
        self,
        x: Tensor,
        condition: Tensor,
        text: Tensor | None = None,
        valid: Tensor | None = None,
        mask: Tensor | None = None,
        angles: Tensor | None = None,
    ) -> Tensor:
        c = self.c
        grid = self._grid(x)
        video = self.embed(x, grid)
        if c.positions == "table":
            video = video + self.table
        elif c.positions == "sincos":
            video = video + sincos(grid, c.width).to(video.dtype)
        if c.registers:
            video = torch.cat([self.registers.expand(video.shape[0], -1, -1), video], dim=1)
        if text is not None and self.refiner is not None:
            text = text + self.refiner([text], Context(c, grid, x.dtype))
        context = Context(c, grid, x.dtype)
        context.text, context.valid, context.mask = text, self._valid(text, valid), mask
        if c.positions == "rotary":
            context.rotation = tables_of(self._angles(grid, text, angles), c.rotary)
        context.mask = None if c.mask_each and mask is None else context.build_mask()
        streams = self._streams(video, text)
        self._set_condition(context, condition, streams)
        for block in self.blocks:
            if len(block.attn.projections) < len(streams):
                streams = [torch.cat(streams if c.side == "after" else streams[::-1], dim=1)]
                self._set_condition(context, condition, streams)
            streams = block(streams, context)
        start = context.start_in(streams[0].shape[1])
        return self.unembed(streams[0][:, start : start + context.video], grid)

    def _grid(self, x: Tensor) -> Grid:
        if self.c.embed == "tokens":
            return self.c.grid
        t, h, w = (size // patch for size, patch in zip(x.shape[2:], self.c.patch, strict=True))
        return t, h, w

    def _valid(self, text: Tensor | None, given: Tensor | None) -> Tensor | None:
        """bool [B, S]"""
        if given is None or text is None:
            return None
        if self.c.valid == "lengths":
            return torch.arange(text.shape[1])[None] < given[:, None]
        return given if self.c.valid == "bool" else given != 0

    def _angles(self, grid: Grid, text: Tensor | None, given: Tensor | None) -> Tensor:
        angles = given if given is not None else self.stored
        if angles is None:
            angles = rotary_angles(grid, self.c.head_dim)
        if self.c.rotary_span == "video":
            return angles
        assert text is not None
        around = [angles.new_zeros(self.c.registers, angles.shape[1]), angles]
        prompt = torch.arange(text.shape[1], dtype=angles.dtype)[:, None].expand(-1, angles.shape[1])
        return torch.cat([prompt, *around] if self.c.side == "before" else [*around, prompt], dim=0)

    def _streams(self, video: Tensor, text: Tensor | None) -> list[Tensor]:
        if text is None or not self.c.is_joint:
            return [video]
        if self.c.streams == "single":
            return [torch.cat([video, text] if self.c.side == "after" else [text, video], dim=1)]
        return [video, text]

    def _set_condition(self, context: Context, condition: Tensor, streams: list[Tensor]) -> None:
        """The condition of each token of the first stream: the video's own, and the first one's for others."""
        context.text_condition = first = condition[:, :1]
        context.condition = condition
        others = streams[0].shape[1] - context.video
        if others and self.c.modulation in ("frame", "token"):
            if self.c.modulation == "frame":
                condition = condition.repeat_interleave(context.frame, dim=1)
            before = context.start_in(streams[0].shape[1])
            around = [first.expand(-1, count, -1) for count in (before, others - before)]
            pieces = [around[0], condition, around[1]]
            context.condition = torch.cat([piece for piece in pieces if piece.shape[1]], dim=1)


def build(c: Configuration) -> SmallDiT:
    """The model with weights of its seed."""
    random = torch.Generator().manual_seed(c.seed)
    model = SmallDiT(c).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=random)
        if parameter.dim() == 1:
            parameter.copy_(0.1 * noise + (0 if name.endswith("bias") else 1))
        elif parameter.dim() == 3:
            parameter.copy_(noise)
        else:
            parameter.copy_(noise / math.sqrt(parameter[0].numel()))
    return model.to(DTYPES[c.dtype])


def inputs(c: Configuration, grid: Grid) -> dict[str, Any]:
    """Arguments of the model for a grid."""
    random = torch.Generator().manual_seed(c.seed + 1)
    dtype, video = DTYPES[c.dtype], math.prod(grid)

    def noise(*shape: int) -> Tensor:
        return torch.randn(c.batch, *shape, generator=random).to(dtype)

    latents = [size * patch for size, patch in zip(grid, c.patch, strict=True)]
    conditions = {"first_frame": 2, "frame": grid[0], "token": video}.get(c.modulation, 1)
    found: dict[str, Any] = {
        "x": noise(video, c.width) if c.embed == "tokens" else noise(CHANNELS, *latents),
        "condition": noise(conditions, c.width),
    }
    if c.text:
        found["text"] = 2 * noise(c.text, c.width)
    if c.positions == "rotary" and c.angles == "given":
        found["angles"] = rotary_angles(grid, c.head_dim)
    if c.mask != "none":
        found |= _padding(c, grid, random)
    return found


def _padding(c: Configuration, grid: Grid, random: torch.Generator) -> dict[str, Tensor]:
    lengths = torch.randint(1, c.text + 1, (c.batch,), generator=random)
    valid = torch.arange(c.text)[None] < lengths[:, None]
    context = Context(c, grid, DTYPES[c.dtype])
    key = key_mask(valid, context.around if c.is_joint else (0, 0))[:, None, None]
    tokens = context.video + c.registers + (c.text if c.is_joint else 0)
    told = {"lengths": lengths, "bool": valid, "integers": valid.long()}[c.valid]
    if c.mask == "given":
        return {"mask": key, "valid": told}
    if c.mask == "given_wide":
        return {"mask": key.expand(-1, -1, tokens, -1).contiguous(), "valid": told}
    if c.mask == "given_bias":
        return {"mask": torch.zeros(key.shape, dtype=DTYPES[c.dtype]).masked_fill(~key, -math.inf), "valid": told}
    return {"valid": told}
