"""Methods put over those of one object for a while, by giving it a subclass of its class.

Names, signatures, `isinstance` and everything the object holds stay as they are, so code that looks at it sees no
difference; what it gets back is its own class, whatever happens meanwhile.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def dressed(thing: object, **methods: Callable[..., Any]) -> Iterator[None]:
    """Inside, `thing` has these methods in place of its class's."""
    plain = type(thing)
    put_on(thing, **methods)
    try:
        yield
    finally:
        _set_class(thing, plain)


@contextmanager
def undressed(thing: object, plain: type) -> Iterator[None]:
    """Inside, a dressed thing is of its own class again: for a call of what was dressed."""
    dress = type(thing)
    _set_class(thing, plain)
    try:
        yield
    finally:
        _set_class(thing, dress)


def put_on(thing: object, **members: Any) -> None:
    """Give the class of `thing`, as it is for `thing` alone, these members until `take_off`."""
    plain = type(thing)
    named = {"__module__": plain.__module__, "__qualname__": plain.__qualname__, "__doc__": plain.__doc__}
    _set_class(thing, types.new_class(plain.__name__, (plain,), exec_body=lambda body: body.update(members | named)))


def take_off(thing: object, plain: type) -> None:
    """Give `thing` back the class that it had."""
    _set_class(thing, plain)


def _set_class(thing: object, kind: type) -> None:
    # Modules and pipelines have a __setattr__ of their own, which is for other attributes.
    object.__setattr__(thing, "__class__", kind)
