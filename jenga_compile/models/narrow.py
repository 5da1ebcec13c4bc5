"""A named model made narrow: as deep as released and as rich in operations, at a cost that a CPU has time for.

What a compiler has to do grows with the operations of a graph, not with the numbers in its tensors. So a narrow
model is compiled as its released one is, and its weights fit anywhere. What the call passes in keeps its width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from jenga_compile.errors import NoNarrowModel
from jenga_compile.models.entry import Entry

_HEADS = {"num_attention_heads": 2, "attention_head_dim": 16}
_WIDTH = 2 * 16
_WAN = {**_HEADS, "ffn_dim": 2 * _WIDTH}

_NARROW: Mapping[str, Mapping[str, Any]] = {
    "HunyuanVideoTransformer3DModel": {**_HEADS, "rope_axes_dim": (4, 6, 6)},
    "HunyuanVideo15Transformer3DModel": {**_HEADS, "rope_axes_dim": (4, 6, 6)},
    "WanTransformer3DModel": _WAN,
    "WanVACETransformer3DModel": _WAN,
    "HeliosTransformer3DModel": {**_WAN, "rope_dim": (4, 6, 6)},
    # The rotary table, which the call passes in, is 64 wide.
    "CogVideoXTransformer3DModel": {"num_attention_heads": 2, "attention_head_dim": 64, "time_embed_dim": 2 * _WIDTH},
    "LTXVideoTransformer3DModel": {**_HEADS, "cross_attention_dim": _WIDTH},
    "Kandinsky5Transformer3DModel": {
        "model_dim": _WIDTH,
        "ff_dim": 2 * _WIDTH,
        "time_dim": _WIDTH,
        "axes_dims": (4, 6, 6),
    },
    "MochiTransformer3DModel": {**_HEADS, "pooled_projection_dim": _WIDTH},
    "SD3Transformer2DModel": {**_HEADS, "caption_projection_dim": _WIDTH},
    "QwenImageTransformer2DModel": {**_HEADS, "axes_dims_rope": (4, 6, 6)},
    "FluxTransformer2DModel": {**_HEADS, "axes_dims_rope": (4, 6, 6)},
}
"""Arguments of each class of diffusers that set its width, for two heads."""

_FOLLOWS = {"added_kv_proj_dim": _WIDTH}
"""Arguments that have to follow the width where an entry sets them."""


def narrow(entry: Entry) -> Entry:
    """The same model with two narrow heads; calls, grids and depth are the released one's.

    Raises:
        NoNarrowModel: it is not known which arguments of the class set its width.
    """
    if entry.transformer not in _NARROW:
        raise NoNarrowModel(model=entry.name, transformer=entry.transformer)
    follows = {name: value for name, value in _FOLLOWS.items() if entry.config.get(name) is not None}
    return dataclasses.replace(entry, config={**entry.config, **_NARROW[entry.transformer], **follows})
