"""The two views of an alignment: nothing cut unseen, nothing told by colour alone, all escaped."""

from __future__ import annotations

import io
import re
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from fedfuse.alignment.side_by_side import MATCHES, Block, Coverage, TextAlignment, Token
from fedfuse.alignment.statistics import Example, TableStatistics
from fedfuse.report.alignment import layout, print_alignment, print_statistics
from fedfuse.report.alignment_formatting import (
    MARKS,
    coverage_rows,
    distance_labels,
    share,
    statistics_rows,
    visible,
)
from fedfuse.report.alignment_html import render

STATISTICS = TableStatistics(1005, 2000, 1000, (500, 300, 100, 60, 40), 250, 334, 4, 3)
COVERAGE = Coverage(20, 16, with_source=12, used=10, exact=15)
NONE = MARKS["none"]
HOSTILE = b'</span><script>alert("1")</script>&amp; [bold red]x[/bold red] \x1b[31m'


def ours(*raws: bytes) -> tuple[Token, ...]:
    return tuple(Token(i, raw, True, raw[:1], 2) for i, raw in enumerate(raws))


def theirs(*raws: bytes, paired: bool = True) -> tuple[Token, ...]:
    return tuple(Token(i, raw, paired or not i) for i, raw in enumerate(raws))


BLOCKS = (
    Block(0, 3, ours(b"The"), theirs(b"The"), "exact"),
    Block(3, 12, ours(b" token", b"izes"), theirs(b" tok", b"en", paired=False), "near"),
    Block(12, 13, ours("日".encode()), theirs(b"\xe6\x97", b"\xa5"), "none"),
    Block(13, 14, (), theirs(b"\n"), "none"),
)
TEXT = TextAlignment("The tokenizes日\n", BLOCKS, 4)


def printed(
    *texts: TextAlignment, width: int = 100, terminal: bool = False, limit: int = 160
) -> str:
    file = io.StringIO()
    colours = "standard" if terminal else None
    console = Console(file=file, width=width, force_terminal=terminal, color_system=colours)
    print_statistics(console, "some/source", "other", STATISTICS, "bytes")
    print_alignment(console, COVERAGE, texts, "events", limit)
    return file.getvalue()


class TestVisible:
    @pytest.mark.parametrize(
        ("raw", "expected"),
        [
            (b" the", "·the"),
            (b"  ", "··"),
            (b"\n\t\r", "\\n\\t\\r"),
            ("日本".encode(), "日本"),
            (b"\xe6\x97", "<E6 97>"),
            (b" \xf0\x9f", "·<F0 9F>"),
            (b"\xa5a\xff", "<A5>a<FF>"),
            (b"\x1b[1m\x00", "\\x1b[1m\\x00"),
            ("\u200d\u202e\ufe0f".encode(), "\\u{200d}\\u{202e}\\u{fe0f}"),
            ("\xa0\u3000".encode(), "\\xa0\\u{3000}"),
            ("\u0301e\u0301".encode(), "◌\u0301e\u0301"),
            ("\ue000\U000e0041".encode(), "\\u{e000}\\u{e0041}"),
            (b"", ""),
        ],
    )
    def test_by_hand(self, raw: bytes, expected: str) -> None:
        assert visible(raw) == expected

    @given(st.binary(max_size=12) | st.text(max_size=12).map(str.encode))
    def test_one_printable_line(self, raw: bytes) -> None:
        shown = visible(raw)
        assert shown.isprintable()
        assert " " not in re.sub(r"<[0-9A-F]{2}( [0-9A-F]{2})*>", "", shown)
        assert bool(shown) == bool(raw)
        shown.encode()


@pytest.mark.parametrize(
    ("part", "whole", "expected"),
    [
        (0, 10, "0.0%"),
        (10, 10, "100.0%"),
        (1, 3, "33.3%"),
        (1, 50_000, "<0.1%"),
        (49_999, 50_000, ">99.9%"),
        (0, 0, "∅"),
    ],
)
def test_shares(part: int, whole: int, expected: str) -> None:
    assert share(part, whole) == expected


def test_rows() -> None:
    rows = {row.label: row[1:] for row in statistics_rows(STATISTICS, "bytes")}
    assert rows["source vocabulary"] == (1005, "")
    assert rows["exact match"] == (500, "50.0%")
    assert rows["1 byte away"] == (300, "30.0%")
    assert rows["4 bytes or more"] == (40, "4.0%")
    assert rows["ties: several nearest targets"] == (250, "25.0%")
    assert rows["ambiguous: target shared with others"] == (334, "33.4%")
    assert rows["specials mapped to specials, of 4"] == (3, "75.0%")
    assert [row.share for row in coverage_rows(COVERAGE)] == ["75.0%", "50.0%", "75.0%"]
    assert distance_labels("characters")[1:3] == ["1 character away", "2 characters away"]


class TestTerminal:
    def test_side_by_side(self) -> None:
        assert [line.plain for line in layout(BLOCKS, 100)] == [
            "SRC  The  ·token┊izes  日            ∅",
            f"      =        ~            {NONE}        {NONE}",
            "DST  The  ·tok┊en°     <E6 97>┊<A5>  \\n",
        ]

    def test_numbers_and_legend(self) -> None:
        text = printed(TEXT)
        assert "SRC  some/source\nDST  other\n" in text
        assert re.search(r"exact match +500 +50\.0%", text)
        assert re.search(r"1 text, positions by events", text)
        assert re.search(r"target positions with a source, of 16 +12 +75\.0%", text)
        for mark in (*MARKS.values(), "·", "┊", "°"):
            assert re.search(rf"(^|\n|, ){mark} \w", text), mark
        assert "text 1" not in text
        assert "not shown" not in text

    def test_wrapped_to_the_width(self) -> None:
        lines = [line.plain for line in layout(BLOCKS * 5, 40)]
        assert max(map(cell_len, lines)) <= 40
        assert [line[:5] for line in lines[:4]] == ["SRC  ", "     ", "DST  ", ""]
        assert sum(line.count("·token┊izes") for line in lines) == 5
        assert sum(line.count("~") for line in lines) == 5

    @given(st.lists(st.lists(st.text(max_size=6), max_size=3), max_size=8), st.integers(20, 80))
    def test_columns_hold(self, texts: list[list[str]], width: int) -> None:
        blocks = [
            Block(i, i + 1, ours(*(t.encode() for t in block)), theirs(b"x"), "near")
            for i, block in enumerate(texts)
        ]
        lines = [line.plain for line in layout(blocks, width)]
        assert all(cell_len(line) <= width for line in lines)
        assert sum(line.count("~") for line in lines[1::4]) == len(blocks)

    def test_what_is_wider_than_a_line_says_that_it_is_cut(self) -> None:
        wide = Block(0, 90, ours(b"x" * 90), theirs(b"\xff" * 45), "none")
        source, marks, target = (line.plain for line in layout([wide], 30))
        assert source == "SRC  " + "x" * 24 + "…"
        assert marks.strip() == NONE
        assert target.startswith("DST  <FF FF")
        assert target.endswith("…")
        assert cell_len(target) <= 30

    def test_colour_is_never_the_only_cue(self) -> None:
        coloured, plain = printed(TEXT, terminal=True), printed(TEXT)
        assert "\x1b[32m" in coloured
        assert "\x1b" not in plain
        assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == plain

    def test_long_texts_are_cut_and_say_so(self) -> None:
        text = printed(TEXT, TextAlignment("more", BLOCKS, 1004), TEXT, limit=6)
        assert "3 texts" in text
        assert "text 1" in text
        assert "text 2" in text
        assert "text 3" not in text
        assert "… 1,006 more blocks not shown" in text

    def test_hostile_tokens(self) -> None:
        block = Block(0, 60, ours(HOSTILE), theirs(HOSTILE), "none")
        text = printed(TextAlignment("x", (block,), 1), width=120)
        assert "\x1b" not in text
        assert text.count("[bold·red]x[/bold·red]·\\x1b[31m") == 2

    def test_narrow(self) -> None:
        for width in (20, 40, 60):
            assert all(cell_len(line) <= width for line in printed(TEXT, width=width).split("\n"))


class Page(HTMLParser):
    """Tags, and the text by the class of the tag around it."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self.open[-1] if self.open else "", data.strip()))

    def classes(self, name: str) -> list[dict[str, str | None]]:
        return [attrs for _, attrs in self.tags if name in (attrs.get("class") or "").split()]


def page_of(*blocks: Block, name: str = "some/source", total: int | None = None) -> str:
    examples = [[Example(3, b" it", 5, HOSTILE, 1)], [], [], [], []]
    text = TextAlignment("x", blocks, total or len(blocks))
    return render(
        name, "other", STATISTICS, COVERAGE, [text], examples, unit="bytes", mode="events"
    )


class TestPage:
    def test_everything_is_there(self) -> None:
        page = Page(page_of(*BLOCKS, total=1004))
        assert not page.open
        words = [text for _, text in page.texts]
        for expected in ("some/source to other", "exact match", "50.0%", "·token", "&lt;E6 97&gt;"):
            expected = expected.replace("&lt;", "<").replace("&gt;", ">")
            assert any(expected in word for word in words), expected
        assert "1,000 more blocks are not shown." in words
        widths = [attrs["style"] for attrs in page.classes("bar")]
        assert widths == [f"width: {n:.2f}%" for n in (50, 30, 10, 6, 4)]

    def test_blocks_have_a_colour_and_a_mark(self) -> None:
        page = Page(page_of(*BLOCKS))
        shown = [(attrs["class"] or "").split()[1] for attrs in page.classes("block")]
        assert shown == [block.match for block in BLOCKS]
        marks = [text for _, text in page.texts if text in MARKS.values()]
        # Once each in the legend before.
        assert marks[len(MATCHES) :] == [MARKS[block.match] for block in BLOCKS]
        assert len(page.classes("lone")) == 1
        assert "∅" in [text for _, text in page.texts]

    def test_pointing_at_a_token_tells_its_nearest(self) -> None:
        titles = [attrs.get("title") for _, attrs in Page(page_of(*BLOCKS)).tags]
        assert "source id 1; nearest i, distance 2" in titles
        assert "target id 1" in titles

    def test_escaped_and_without_a_network(self) -> None:
        text = page_of(Block(0, 9, ours(HOSTILE), theirs(HOSTILE), "none"), name="<script>x")
        page = Page(text)
        assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "img", "a", "iframe"})
        assert not any({"src", "href", "onerror"} & attrs.keys() for _, attrs in page.tags)
        assert "\x1b" not in text
        assert "http://" not in text
        assert "https://" not in text
        assert "default-src 'none'" in text
        assert any("<script>x to other" in word for _, word in page.texts)

    def test_dark_mode(self) -> None:
        dark = page_of().split("prefers-color-scheme: dark")[1:]
        assert any("--near:" in part for part in dark)
        assert any("--better:" in part for part in dark)
