"""What can be wrong with the arguments of an operator, and with the kernel that computes it."""

from __future__ import annotations

from jenga_compile.errors.base import JengaError


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
