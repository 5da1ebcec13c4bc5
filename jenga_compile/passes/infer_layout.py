"""Where the video lies on the token axis of each site, and on which grid: entered, nothing rewritten.   [EXACT]

Fires on   every marked site of at least `min_blocks` blocks.
Leaves     what the graph does not prove (`layout/proof.py`), with what it shows instead.

With symbolic sizes the proof is made under several valuations of the symbols, and its numbers are carried back to the
sizes that the graph computes, so that one graph serves every resolution. Where the proofs do not tell one story, the
sizes are specialised and each resolution has a graph of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch.fx import GraphModule, Node

from jenga_compile.config import Carving
from jenga_compile.errors import GridUnfit
from jenga_compile.passes.eligibility import short
from jenga_compile.passes.graph import graphs_of, is_data_dependent, tensor_of
from jenga_compile.passes.layout.proof import CrossAttention, Layout, LayoutProof, Misfit
from jenga_compile.passes.layout.reading import Unproven
from jenga_compile.passes.layout.symbolic import SymbolicLayout
from jenga_compile.passes.ledger import Ledger
from jenga_compile.passes.site import ATTENTION, number_of
from jenga_compile.passes.sizes import (
    Expressions,
    Valuation,
    at_most,
    expression_of,
    hint_of,
    is_for_one_size,
    specialise,
    under,
    valuations,
)


def infer_layout(gm: GraphModule, ledger: Ledger) -> None:
    """Enter the layout of every site.

    Raises:
        GridUnfit: a grid is given, and no site of a graph lies on it.
    """
    for graph_module in graphs_of(gm):
        sites = [node for node in graph_module.graph.find_nodes(op="call_function", target=ATTENTION)]
        meant = [site for site in sites if not _is_short(site, ledger)]
        if meant:
            _infer(graph_module, meant, ledger)


def _is_short(site: Node, ledger: Ledger) -> bool:
    """Whether the site has too few tokens; a number of tokens that hangs on data is judged by its video."""
    size = tensor_of(site).shape[2]
    carving = ledger.options.carving
    is_short = not is_data_dependent(site) and at_most(size, carving.longest_short)
    if is_short:
        ledger.settle(number_of(site), **short_site(hint_of(size), "tokens", carving))
    return is_short


def short_site(tokens: int, what: str, carving: Carving) -> dict[str, object]:
    """Entry of a site that is too short to be carved."""
    return {"reason": short(tokens, what, carving), "intended": False}


def _infer(gm: GraphModule, sites: list[Node], ledger: Ledger) -> None:
    under_all = valuations(gm.graph)
    if ledger.options.grid is not None or is_for_one_size(gm.graph, under_all):
        specialise(gm.graph)
        under_all = valuations(gm.graph)
    stories = [_proofs(sites, ledger, valuation) for valuation in under_all]
    found = _symbolic(gm, sites, stories, under_all)
    if found is None:
        specialise(gm.graph)
        under_all = valuations(gm.graph)
        stories = [_proofs(sites, ledger, valuation) for valuation in under_all]
        found = _symbolic(gm, sites, stories, under_all)
    if ledger.options.grid is not None:
        _check_given(sites, stories[0], ledger)
    for place, site in enumerate(sites):
        number = number_of(site)
        layout = None if found is None else found[place]
        if layout is not None:
            ledger.layouts[number] = layout
            first = layout.at(under_all[0])
            text = first.text if ledger[number].queries else 0
            ledger.settle(number, grid=first.grid, video=(first.start, first.stop), text=text)
        else:
            ledger.settle(number, **_left(stories[0][place]))


def _check_given(sites: list[Node], stories: list[Layout | Unproven], ledger: Ledger) -> None:
    misfits = [(site, story) for site, story in zip(sites, stories, strict=True) if isinstance(story, Misfit)]
    if misfits and not any(isinstance(story, Layout) for story in stories):
        site, why = misfits[0]
        raise GridUnfit(path=ledger[number_of(site)].path, why=why)


def _left(story: Layout | Unproven) -> dict[str, object]:
    if isinstance(story, Layout):
        return {"reason": "no grid: its sizes hang on data"}
    if isinstance(story, CrossAttention):
        return {"reason": str(story), "intended": False}
    return {"reason": str(story)}


def _proofs(sites: list[Node], ledger: Ledger, valuation: Valuation) -> list[Layout | Unproven]:
    """Each site's layout in the numbers of one valuation, or why there is none."""
    proof = LayoutProof(ledger.options)
    with under(valuation):
        return [_proof(site, proof) for site in sites]


def _proof(site: Node, proof: LayoutProof) -> Layout | Unproven:
    query, key = site.args[:2]
    assert isinstance(query, Node)
    assert isinstance(key, Node)
    try:
        return proof.layout(query, key)
    except Unproven as unproven:
        return unproven


def _symbolic(
    gm: GraphModule, sites: list[Node], stories: list[list[Layout | Unproven]], under_all: Sequence[Valuation]
) -> list[SymbolicLayout | None] | None:
    """The layouts in the graph's sizes; None if the stories differ in more than their numbers."""
    expressions = Expressions(gm.graph, under_all)
    found: list[SymbolicLayout | None] = []
    for site, told in zip(sites, zip(*stories, strict=True), strict=True):
        layouts = [story for story in told if isinstance(story, Layout)]
        if not layouts:
            found.append(None)
            continue
        layout = _carried_back(site, layouts, expressions) if len(layouts) == len(told) else None
        if layout is None:
            return None
        found.append(layout)
    return found


def _carried_back(site: Node, layouts: Sequence[Layout], expressions: Expressions) -> SymbolicLayout | None:
    t, h, w = (expressions.find(tuple(layout.grid[axis] for layout in layouts)) for axis in range(3))
    if t is None or h is None or w is None:
        return None
    tokens = expression_of(tensor_of(site).shape[2])
    start = expressions.find(tuple(layout.start for layout in layouts))
    if start is None and all(layout.stop == layout.tokens for layout in layouts):
        start = tokens - t * h * w
    return None if start is None else SymbolicLayout((t, h, w), start, tokens, layouts[0].from_context)
