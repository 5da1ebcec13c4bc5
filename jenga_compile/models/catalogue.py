"""The models that `jenga explain` knows by name."""

from __future__ import annotations

import difflib

from jenga_compile.errors import UnknownModel
from jenga_compile.models import hunyuan_video, image, more_video, wan
from jenga_compile.models.entry import Entry

CATALOGUE: dict[str, Entry] = {
    entry.name: entry for entry in (*hunyuan_video.ENTRIES, *wan.ENTRIES, *more_video.ENTRIES, *image.ENTRIES)
}


def find_model(name: str) -> Entry:
    """The model of that name, in any case.

    Raises:
        UnknownModel: there is none.
    """
    found = CATALOGUE.get(name.lower())
    if found is None:
        (near,) = difflib.get_close_matches(name.lower(), CATALOGUE, n=1, cutoff=0.0)
        raise UnknownModel(name=name, near=near)
    return found
