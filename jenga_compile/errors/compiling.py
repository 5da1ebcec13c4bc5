"""What can be wrong with a model, its options and its graphs."""

from __future__ import annotations

from jenga_compile.errors.base import JengaError


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
