"""What can be wrong with what the `jenga` command is asked for."""

from __future__ import annotations

from jenga_compile.errors.base import JengaError


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
