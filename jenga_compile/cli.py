"""The `jenga` command: arguments, one-line errors and exit codes. What a verb does stands in its own module."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

from jenga_compile.errors import JengaError

BAD_INPUT = 2
"""Exit code for anything the user can put right."""

INTERRUPTED = 130


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_INPUT, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line `arguments`, by default the process's own; returns the exit code."""
    parsed = _parser().parse_args(arguments)
    try:
        with warnings.catch_warnings(), _terminated_as_interrupted():
            warnings.showwarning = _show_warning
            report = parsed.run(parsed)
    except (JengaError, OSError) as error:
        print(f"jenga: error: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt as stop:
        print(f"jenga: interrupted, {str(stop) or 'nothing written'}", file=sys.stderr)
        return INTERRUPTED
    return _say(report)


def _say(report: str) -> int:
    """Print the report. The work is done by now, so a reader that has left early is no failure."""
    if sys.stdout is None:
        return 0
    try:
        print(report, flush=True)
    except OSError as error:
        # Python must not fail once more when it flushes at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            print(f"jenga: error: the files are written, their report is not: {error}", file=sys.stderr)
            return BAD_INPUT
    return 0


@contextlib.contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Inside, being told to terminate cleans up as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _show_warning(message: Warning | str, *where: object, **more: object) -> None:
    """A warning for the user is one line; where in the code it was raised does not help them."""
    print(f"jenga: warning: {message}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="jenga", description="Faster video diffusion transformers, without training.")
    parser.add_argument("--version", action="version", version=f"jenga-compile {version('jenga-compile')}")
    verbs = parser.add_subparsers(required=True, metavar="VERB", parser_class=_Parser)
    _add_generate(verbs.add_parser("generate", help="make a video from a prompt with the packaged model"))
    _add_explain(verbs.add_parser("explain", help="what carving would do to a known model, without its weights"))
    _add_bench(verbs.add_parser("bench", help="measure on this machine: compilation, kernels"))
    return parser


def _add_generate(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("prompt", help='what to show, for example "a fox moving left on a sky blue striped background"')
    add("-o", "--output", type=Path, required=True, help="file to write: .mp4, .gif, or .png for a contact sheet")
    add("--seed", type=int, default=0, help="seed of the initial noise (default: 0)")
    add("--steps", type=int, default=24, help="denoising steps, 1 to 1000 (default: 24)")
    add(
        "--size",
        type=int,
        default=64,
        help="pixels a side, 32 to 256 by 4; trained at 48, 64, 80 (default: 64)",
    )
    add("--guidance", type=float, default=3.0, help="strength of the prompt; 1 switches guidance off (default: 3)")
    add(
        "--keep",
        type=float,
        help="least fraction of video blocks to attend to, in (0, 1] (default: the preset's, without one 0.3)",
    )
    add("--preset", help="sample by a preset: base, turbo, flash, three_stage (default: carve every step at full size)")
    add("--skip", help="skip steps by a preset's list (static), as the video allows (adaptive), or none")
    add("--dense", action="store_true", help="do not carve: plain attention over everything")
    add("--compare", action="store_true", help="also write NAME.dense.* at the same seed, and NAME.compare.png")
    add("--scale", type=int, default=4, help="enlarge every pixel this many times in the file, 1 to 32 (default: 4)")
    add("--fps", type=int, default=12, help="frames a second in the file, 1 to 120, .gif to 50 (default: 12)")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto, cuda where there is one)")
    parser.set_defaults(run=_generate)


def _generate(parsed: argparse.Namespace) -> str:
    from jenga_compile.generate import Request, generate

    fields = {name: value for name, value in vars(parsed).items() if name != "run"}
    return generate(Request(**fields))


def _add_explain(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", nargs="?", help="name from the list, for example hunyuan-video")
    add("--list", action="store_true", help="list the models with their default sizes, and stop")
    add("--size", type=_size, help="pixels, height x width, for example 720x1280 (default: the model's own)")
    add("--frames", type=int, help="frames of the video (default: the model's own)")
    add("--preset", help="base, turbo, flash or three_stage, or the released scripts' values, for example base_release")
    add("--keep", type=float, help="least fraction of video blocks to attend to, in (0, 1] (default: 0.3)")
    add("--cutoff", type=float, help="softmax mass that the kept blocks must exceed, in [0, 1) (default: 0.3)")
    add("--layers", type=int, help="cut the model to so many blocks of each kind (default: all)")
    add("--batch", type=int, default=1, help="samples a call; 2 where guidance doubles the batch (default: 1)")
    add("--json", type=Path, help="also write all of it to this file; - prints it and nothing else")
    parser.set_defaults(run=_explain, parser=parser)


def _size(text: str) -> tuple[int, int]:
    height, x, width = text.partition("x")
    if not (x and height.isdecimal() and width.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form HEIGHTxWIDTH, for example 720x1280")
    return int(height), int(width)


def _explain(parsed: argparse.Namespace) -> str:
    if parsed.model is None and not parsed.list:
        parsed.parser.error("name a model, or --list them")
    if parsed.model is not None and parsed.list:
        parsed.parser.error(f"--list names all models: leave out {parsed.model!r}, or --list to explain it")

    from jenga_compile.forecast import Request
    from jenga_compile.forecast_text import listed, run

    if parsed.list:
        return listed()
    fields = {name: value for name, value in vars(parsed).items() if name not in ("run", "parser", "list")}
    return run(Request(**fields))


def _add_bench(parser: argparse.ArgumentParser) -> None:
    what = parser.add_subparsers(required=True, metavar="WHAT", parser_class=_Parser)
    _add_bench_compile(what.add_parser("compile", help="seconds, graphs and caches of a known model's compilation"))
    _add_bench_kernels(what.add_parser("kernels", help="the operators and other attention, on sites of known models"))


def _add_bench_compile(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", nargs="?", default="hunyuan-video", help="name from `jenga explain --list` (default: hunyuan-video)")
    add("--layers", type=int, help="cut the model to so many blocks of each kind (default: all, which takes minutes)")
    add("--size", type=_size, help="pixels, height x width (default: 12 x 16 tokens)")
    add("--frames", type=int, help="frames of the video (default: three of tokens)")
    add("--runs", type=int, default=1, help="times that each compilation is measured (default: 1)")
    add("--json", type=Path, help="also write all of it to this file")
    parser.set_defaults(run=_bench_compile)


def _bench_compile(parsed: argparse.Namespace) -> str:
    from jenga_compile.bench.compile import Request
    from jenga_compile.bench.compile_text import run

    return run(Request(**{name: value for name, value in vars(parsed).items() if name != "run"}))


def _add_bench_kernels(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--models", nargs="+", help="sites by name (default: hunyuan-video-720p, on a CPU tiny)")
    add("--densities", nargs="+", type=float, help="fractions of video blocks to keep (default: .05 .1 .2 .3 .5 1)")
    add("--masks", nargs="+", choices=("structured", "random"), help="block lists (default: structured)")
    add("--values", choices=("structured", "random"), help="how v is made (default: structured)")
    add("--kernels", nargs="+", help="ours, for example select site auto (default: all; gathered only on a CPU)")
    add("--rivals", nargs="*", help="what to measure beside ours, or nothing (default: all that are installed)")
    add("--protocol", choices=("sustained", "burst"), help="in turns, or each from a cool chip (default: sustained)")
    add("--rounds", type=int, help="rounds (default: 7, of bursts 1)")
    add("--reps", type=int, help="most calls a round (default: 7, in a burst 5)")
    add("--budget", type=float, help="seconds after which no case is started (default: none)")
    add("--device", help="cuda or cpu (default: cuda)")
    add("--json", type=Path, help="also write all of it to this file, after every case")
    parser.set_defaults(run=_bench_kernels)


def _bench_kernels(parsed: argparse.Namespace) -> str:
    from jenga_compile.bench.kernels import Request
    from jenga_compile.bench.kernels_text import run

    given: dict[str, Any] = {}
    for name, value in vars(parsed).items():
        if name != "run" and value is not None:
            given[name] = tuple(value) if isinstance(value, list) else value
    return run(Request(**given))


if __name__ == "__main__":
    sys.exit(main())
