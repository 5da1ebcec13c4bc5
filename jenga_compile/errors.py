"""Every way to misuse jenga_compile, each with what was found, what was expected and the way out.

A class is named by the situation and carries its text as a template; raise it with the facts the template asks for:
`raise InvalidGrid(value=...)`. The facts stay on the exception (`error.facts`), so a caller need not parse text.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import ClassVar


class JengaError(Exception):
    """Base of the catalogue; never raised itself."""

    template: ClassVar[str]

    def __init__(self, **facts: object) -> None:
        super().__init__(self.template.format(**facts))
        self.facts = facts


def hint(name: str, valid: Iterable[str]) -> str:
    """The end of a sentence about an unknown name: which valid one is near, if any is."""
    near = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else "."


class UnknownOption(JengaError, ValueError):
    template = "unknown option {name!r} for backend 'jenga'{hint} Valid options: {valid}."


class OptionOutOfRange(JengaError, ValueError):
    template = "option {name}={value!r} is outside {expected}. {way_out}"


class OptionOfWrongType(JengaError, TypeError):
    template = "option {name}={value!r} is of type {found}, expected {expected}. {way_out}"


class OptionsAtOdds(JengaError, ValueError):
    template = "option {name}={value!r} does nothing {beside}. {way_out}"


class OptionsInDictionary(JengaError, TypeError):
    template = (
        "jenga_compile.compile was given options={options!r}, expected keywords. "
        "Pass them as in compile(model, keep=0.3), or a dictionary as compile(model, **options)."
    )


class NotAModule(JengaError, TypeError):
    template = (
        "jenga_compile.compile was given {value!r}, of type {found}, expected a torch.nn.Module. "
        "Compile a function with torch.compile(function, backend='jenga', options={{...}})."
    )


class CompiledAlready(JengaError, ValueError):
    template = (
        "jenga_compile.compile was given a {model} that is compiled already, expected the module itself. "
        "Pass what it was made of, which is also its attribute _orig_mod."
    )


class NothingTraced(JengaError, RuntimeError):
    template = (
        "torch.compile made no graph of the call of {model}, so there is nothing to explain. "
        "Look for torch.compiler.disable around its forward, and call explain outside torch.compile."
    )


class ModeAndOptions(JengaError, ValueError):
    template = "mode={mode!r} and options['mode']={option!r} are both given. Keep one of them."


class AttentionNotCarved(JengaError, RuntimeError):
    template = (
        "strict: {count} attention site(s) meant to be carved stay dense; the first is {path!r}: {reason}. "
        "Set options={{'strict': False}} to run them dense."
    )


class UnreadableGrid(JengaError, ValueError):
    template = (
        "grid text {text!r} is not of the form TxHxW. "
        "Write three positive integers joined by 'x': latent frames, token rows, token columns, e.g. '32x45x80'."
    )


class InvalidGrid(JengaError, ValueError):
    template = (
        "grid (t, h, w) = {value!r} is not three positive integers. "
        "Pass the latent grid after patchifying, e.g. (32, 45, 80)."
    )


class GridUnfit(JengaError, ValueError):
    template = (
        "no attention of the model lies on the given grid; the first, {path}: {why}. "
        "Pass the latent grid after patchifying (t, h, w), or no grid where the graph shows it."
    )


class ShapeMismatch(JengaError, ValueError):
    template = (
        "jenga::{op}: {name} has shape {found}, the contract asks for {expected}. "
        "B, H and L are those of q [B, H, L, D]; tokens come as [video, text] in blocks of 128."
    )


class DtypeMismatch(JengaError, TypeError):
    template = (
        "jenga::{op}: {name} is {found}, the contract asks for {expected}. "
        "Cast it: q, k and v share one floating dtype, masks are bool, block lists int32, knobs float32."
    )


class DeviceMismatch(JengaError, ValueError):
    template = "jenga::{op}: {name} is on {found}, q is on {expected}. Move it there with .to({expected!r})."


class VideoOutOfRange(JengaError, ValueError):
    template = (
        "jenga::{op}: video={video} is outside [1, {length}], the length of the sequence. "
        "Pass the number of leading video tokens; what follows them is text."
    )


class VideoSpanOutOfRange(JengaError, ValueError):
    template = (
        "jenga::carved_attention: a grid of {tokens} tokens from position {start} does not fit in a sequence of "
        "{length}. Pass the grid after patchifying and video_start in [0, length - t*h*w]."
    )


class BlockListOutOfRange(JengaError, IndexError):
    template = (
        "jenga::{op}: {name} range over [{least}, {most}], outside [0, {high}]. "
        "Take the lists from jenga::block_select for the same sequence: entries past the count are -1."
    )


class OrderMatters(JengaError, RuntimeError):
    template = (
        "output {output} of the compiled graph changes by {difference:.3g} (largest value {largest:.3g}) with the "
        "order of its tokens, which it must not. This is a bug of jenga_compile: please report it with the model; "
        "options={{'hoist': False}} avoids it."
    )


class OtherGridTold(JengaError, ValueError):
    template = (
        "the running call tells a token grid of {grid}, that is {found} tokens, to a graph that was made for "
        "{expected} video tokens. Tell the grid of the latents that the model is called with."
    )


class GridNotSet(JengaError, RuntimeError):
    template = (
        "carved attention over {length} tokens was compiled to take its grid from the running call, which tells none. "
        "Call the model as jenga_compile.compile(model) gives it, or inside `with jenga_compile.token_grid(t, h, w):`."
    )


class UnknownMask(JengaError, LookupError):
    template = (
        "no block masks are registered under handle {handle}; there are {known} of them. Handles hold for one process: "
        "pass what jenga_compile.kernels.static_masks.register(StaticMasks(...)) returned."
    )


class UnknownKnobs(JengaError, LookupError):
    template = (
        "no knobs are registered under handle {handle}; known handles: {known}. "
        "Handles hold for one process: pass what jenga_compile.kernels.knobs.register(Knobs(...)) returned."
    )


class UnknownKnob(JengaError, AttributeError):
    template = "a Knobs has no {name!r} to set{hint} Knobs: {valid}."


class NotDifferentiable(JengaError, RuntimeError):
    template = (
        "jenga::{op} has no backward: carved attention is for inference. "
        "Run under torch.no_grad() or torch.inference_mode(), or leave the attention dense."
    )


class KernelUnavailable(JengaError, RuntimeError):
    template = (
        'kernel={kernel!r} cannot compute this attention: {why}. Use kernel="auto", which takes the fastest that can.'
    )


class NoKernelWorks(JengaError, RuntimeError):
    template = (
        "no variant of the kernel for {what} gives the right numbers on {device}: {why}. "
        'Use kernel="gathered", and report this with the versions of torch and triton.'
    )


class UnknownVideoFormat(JengaError, ValueError):
    template = "cannot write {path!r}: {found} is no video format known here. Use one of {formats}."


class OutputFolderMissing(JengaError, OSError):
    template = "cannot write {path!r}: {folder!r} is no folder that can be written to. Choose another."


class OutputIsFolder(JengaError, OSError):
    template = "cannot write {path!r}: it is a folder. Choose another name, or remove it."


class OutputUnusable(JengaError, OSError):
    template = "cannot write {path!r}: {why}. Choose another name."


class VideoNotWritten(JengaError, OSError):
    template = "{path!r} was not written whole: {found} of {expected} frames. Check the free space of its disk."


class PromptEmpty(JengaError, ValueError):
    template = "empty prompt among {prompts}. Say what to show, e.g. 'a fox moving left on a red background'."


class SizeNotDivisible(JengaError, ValueError):
    template = "{name}={size} is not a positive multiple of the model's patch, {patch} pixels. Use {near}."


class FramesDoNotFit(JengaError, ValueError):
    template = "{model} has no whole number of tokens for {frames} frames. Use {near}."


class UnknownModel(JengaError, LookupError):
    template = "no model {name!r} in the catalogue; the nearest is {near!r}. `jenga explain --list` names them all."


class NoNarrowModel(JengaError, NotImplementedError):
    template = (
        "{model} cannot be made narrow: nothing says which arguments of {transformer} set its width. "
        "Bench a model of another class, or add the class to jenga_compile/models/narrow.py."
    )


class BenchFailed(JengaError, RuntimeError):
    template = (
        "the process that compiles {model} with {backend!r} ended with exit code {code}: {why}. "
        "Bench a model that runs, or look for the same error in a call of it."
    )


class NotKnownToBench(JengaError, LookupError):
    template = "no {kind} {name!r} to measure{hint} Known: {valid}."


class KernelsWrong(JengaError, RuntimeError):
    template = (
        "{count} of our kernels failed or differ from float64 by more than rounding, and so have no time; the first, "
        "{name} on {case}: {why}. This is a bug of jenga_compile: please report it with the JSON file."
    )


class UnknownPreset(JengaError, LookupError):
    template = "no preset {name!r}; the nearest is {near!r}. Presets: {valid}."


class ModelWeightsMissing(JengaError, FileNotFoundError):
    template = "no model in {folder!r}: transformer/config.json is not there. Reinstall, or pass a trained folder."


class OutOfRange(JengaError, ValueError):
    template = "{name} {value} is outside {expected}. {way_out}"


class DeviceUnavailable(JengaError, ValueError):
    template = "device {device!r} is not available: {why}. Use one of: {available}."


class ExtraMissing(JengaError, ImportError):
    template = "{module!r} is not installed. pip install 'jenga-compile[{extra}]' brings what this needs."


class MaskNotStatic(JengaError, ValueError):
    template = (
        "{mask} is chosen at run time and is no matrix before. "
        "Ask jenga_compile.block_mask.split(mask) for what is always seen and what may be."
    )


class ImportancesDiffer(JengaError, ValueError):
    template = "one mask holds {first} and {second}. Importance is computed once: give it the same keep and cutoff."


class HeadsNested(JengaError, ValueError):
    template = "a PerHead holds {mask}, a PerHead itself. Give each head one mask."


class MaskUnfit(JengaError, ValueError):
    template = (
        "a fixed mask of blocks is {found}, expected {expected}. "
        "Make it for this grid: a row a query block, a column a key block of 128 tokens."
    )


class FlexMaskUnfit(JengaError, ValueError):
    template = (
        "this BlockMask is no mask of blocks of 128: {why}. "
        "Tell from_flex the number of condition tokens, or keep the mask with FlexAttention."
    )
