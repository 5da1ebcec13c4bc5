"""The report's arithmetic and its three forms."""

from __future__ import annotations

import json

from jenga_compile.sites import Report, Site

CARVED = Site(
    path="blocks.0.attn",
    decision="carved",
    reason="video self-attention",
    batch=1,
    heads=2,
    queries=480,
    keys=480,
    head_dim=12,
    grid=(5, 8, 12),
    video=(0, 480),
    curve="sliced",
)
LEFT = Site(
    path="blocks.0.cross", decision="left", reason="cross-attention: 480 queries, 7 keys",
    batch=1, heads=2, queries=480, keys=7, head_dim=12,
)  # fmt: skip


def test_the_sum_is_always_the_number_of_sites() -> None:
    report = Report((CARVED,)) + Report((LEFT, LEFT))
    assert (report.seen, report.carved, report.left, report.gathers) == (3, 1, 2, 4)


def test_flops_count_two_matrix_products() -> None:
    assert CARVED.dense_flops == 2 * (2 * 2 * 480 * 480 * 12)


def test_the_table_has_a_line_a_site() -> None:
    text = str(Report((CARVED, LEFT)))
    assert text.splitlines()[0] == "attention: 2 seen, 1 carved, 1 left; gathers 3 in, 1 out"
    assert "blocks.0.attn" in text
    assert "5x8x12" in text
    assert "cross-attention: 480 queries, 7 keys" in text
    assert len(text.splitlines()) == 4
    assert "no attention" in str(Report())


def test_json_holds_every_field() -> None:
    loaded = json.loads(Report((CARVED,)).to_json())
    assert loaded["seen"] == loaded["carved"] == 1
    assert loaded["sites"][0]["grid"] == [5, 8, 12]


def test_the_summary_counts_reasons() -> None:
    expected = "1 of 3 attention sites carved (left: 2x cross-attention: 480 queries, 7 keys)"
    assert Report((CARVED, LEFT, LEFT)).summary() == expected
