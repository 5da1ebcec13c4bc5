"""What Dynamo remembers between compilations, kept apart from one that nobody asked for.

Compiled graphs hang on code objects, which count how many they hold (`recompile_limit`) and are shared by every
instance of a class; sizes seen before decide which are dynamic. A compilation made only to look must change neither.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import itertools
from collections.abc import Iterator
from types import CodeType, FunctionType

from torch._C._dynamo.eval_frame import reset_code
from torch._dynamo import convert_frame, pgo


@contextlib.contextmanager
def untouched() -> Iterator[None]:
    """Inside, Dynamo meets every function for the first time; after it, it remembers what it did before."""
    known = {id(code): code for code in _codes_met()}
    swapped = [(function, function.__code__) for function in _functions_with(known)]
    sizes = pgo.get_code_state()
    sizes_before = copy.deepcopy(sizes)
    try:
        for function, code in swapped:
            function.__code__ = _copied(code, known)
        yield
    finally:
        for function, code in swapped:
            function.__code__ = code
        for code in _codes_met():
            if id(code) not in known:
                reset_code(code)
        sizes.clear()
        sizes.update(sizes_before)


def _codes_met() -> list[CodeType]:
    """Every code object that Dynamo has been asked to compile."""
    return [code for reference in convert_frame.input_codes.seen if (code := reference()) is not None]


def _functions_with(known: dict[int, CodeType]) -> list[FunctionType]:
    """Functions that run one of these code objects, or make a function that does."""
    if not known:
        return []
    functions = [value for value in gc.get_objects() if type(value) is FunctionType]
    return [function for function in functions if _holds(function.__code__, known)]


def _holds(code: CodeType, known: dict[int, CodeType]) -> bool:
    return id(code) in known or any(_holds(inner, known) for inner in _inner(code))


def _inner(code: CodeType) -> list[CodeType]:
    """Code of the functions that are defined inside."""
    return [value for value in code.co_consts if isinstance(value, CodeType)]


def _copied(code: CodeType, known: dict[int, CodeType]) -> CodeType:
    """The same code as a value that Dynamo has not met, unequal to all others: its look-ups go by equality."""
    constants = [
        _copied(value, known) if isinstance(value, CodeType) and _holds(value, known) else value
        for value in code.co_consts
    ]
    return code.replace(co_consts=(*constants, next(_number)))


_number = itertools.count()
