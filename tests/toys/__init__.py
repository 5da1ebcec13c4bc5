"""Real diffusers classes at toy size, random weights, with inputs: what the compiler is tried on.

Every builder takes `batch`, `height`, `width` and `layers`, and but for image models `frames`; `height` and `width` are
twice the token grid's.
"""

from __future__ import annotations

from collections.abc import Callable

from tests.toys.cogvideox import cogvideox, cogvideox15, cogvideox_sincos
from tests.toys.dense import latte, sana_video
from tests.toys.helios import helios
from tests.toys.hunyuan import hunyuan, hunyuan15, hunyuan_latent_concat, hunyuan_token_replace
from tests.toys.images import flux, qwenimage, sd3, sd35
from tests.toys.kandinsky import kandinsky5
from tests.toys.ltx import ltx, ltx2
from tests.toys.mochi import mochi
from tests.toys.toy import Toy
from tests.toys.wan import chronoedit, wan, wan_image, wan_ti2v, wan_vace

__all__ = ["TOYS", "Toy", "hunyuan", "wan"]

_BUILDERS: tuple[Callable[..., Toy], ...] = (
    hunyuan,
    hunyuan_latent_concat,
    hunyuan_token_replace,
    hunyuan15,
    wan,
    wan_image,
    wan_ti2v,
    wan_vace,
    chronoedit,
    cogvideox,
    cogvideox_sincos,
    cogvideox15,
    ltx,
    ltx2,
    kandinsky5,
    helios,
    mochi,
    sd3,
    sd35,
    qwenimage,
    flux,
    latte,
    sana_video,
)

TOYS: dict[str, Callable[..., Toy]] = {build.__name__: build for build in _BUILDERS}
"""Every toy by its builder's name."""
