"""How two tokenizers align, as one self-contained HTML file in the style of a run's report.

Tokens and texts are escaped; the page's own policy forbids scripts and loading besides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from fedfuse.alignment.side_by_side import Coverage, TextAlignment, Token
from fedfuse.alignment.statistics import Example, TableStatistics
from fedfuse.report.alignment_formatting import (
    ALONE,
    JOINT,
    MARKS,
    MEANINGS,
    NOTHING,
    SPACE,
    coverage_rows,
    distance_labels,
    share,
    statistics_rows,
    visible,
)
from fedfuse.report.css import STYLE
from fedfuse.tracking.json_fields import clean

_STYLE = """
:root { --near: #8a5a00; }
@media screen and (prefers-color-scheme: dark) { :root { --near: #e6b450; } }
.exact { --tone: var(--better); } .near { --tone: var(--near); } .none { --tone: var(--worse); }
.bars td:last-child { min-width: 18rem; }
.bar { display: block; height: 1.1rem; min-width: 1px; background: var(--tone); }
.legend { list-style: none; margin: .5rem 0; padding: 0; font-size: .875rem; color: var(--muted); }
.mark { color: var(--tone); font-weight: 700; }
.aligned { display: flex; flex-wrap: wrap; gap: .5rem .35rem; margin: .8rem 0 1.6rem;
  font: .875rem/1.35 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
.block { display: inline-flex; flex-direction: column; align-items: center; max-width: 100%;
  padding: .15rem .3rem; background: var(--soft); border-bottom: 2px solid var(--tone);
  overflow-wrap: anywhere; }
.block .mark { line-height: 1; }
.lone { color: var(--muted); }
.joint, .nothing { color: var(--muted); }
.token { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
@media print { .block { break-inside: avoid; } }
"""

_TEMPLATE = """\
{% macro tokens(side) %}
{% if not side %}<span class="nothing">{{ nothing }}</span>{% endif %}
{%- for token in side -%}
{%- if not loop.first %}<span class="joint">{{ joint }}</span>{% endif -%}
<span title="{{ describe(token) }}"
{%- if token.nearest is none and not token.paired %} class="lone"{% endif -%}
>{{ visible(token.raw) }}
{%- if token.nearest is none and not token.paired %}{{ alone }}{% endif %}</span>
{%- endfor %}
{% endmacro %}
{% macro counts(title, rows) %}
<div class="scroll"><table>
<thead><tr><th>{{ title }}</th><th>count</th><th>share</th></tr></thead>
<tbody>
{% for row in rows %}
<tr><th>{{ row.label }}</th><td>{{ "{:,}".format(row.number) }}</td><td>{{ row.share }}</td></tr>
{% endfor %}
</tbody>
</table></div>
{% endmacro %}
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ source }} to {{ target }} | fedfuse align</title>
<style>{{ style }}</style>
</head>
<body>
<header>
<h1>{{ source }} to {{ target }}</h1>
<p class="meta">How the tokens of the source (first) align with those of the target (second).
Distances in {{ unit }}, positions by {{ mode }}.</p>
</header>
<main>
<section id="statistics">
<h2>Vocabulary</h2>
{{ counts("vocabulary", statistics) }}
<p class="note">Tie: several targets at the smallest distance. Ambiguous: the nearest target is also
that of another source token.</p>
</section>
<section id="distances">
<h2>Distances</h2>
<table class="bars">
<thead><tr><th>nearest target</th><th>tokens</th><th>share</th><th></th></tr></thead>
<tbody>
{% for bar in bars %}
<tr><th>{{ bar.label }}</th><td>{{ "{:,}".format(bar.count) }}</td><td>{{ bar.share }}</td>
<td><span class="bar {{ bar.tone }}" style="width: {{ bar.percent }}%"></span></td></tr>
{% endfor %}
</tbody>
</table>
</section>
<section id="texts">
<h2>Texts</h2>
{{ counts("texts", coverage) }}
<ul class="legend">
{% for match, mark in marks.items() %}
<li class="{{ match }}"><span class="mark">{{ mark }}</span> {{ meanings[match] }}</li>
{% endfor %}
<li>{{ space }} a space, {{ joint }} between the tokens of a block, {{ alone }} behind a target
token at a position that no source position speaks of; source above, target below</li>
</ul>
{% for text in texts if text.blocks %}
<div class="aligned">
{% for block in text.blocks %}
<span class="block {{ block.match }}"><span class="source">{{ tokens(block.source) }}</span>
<span class="mark">{{ marks[block.match] }}</span>
<span class="target">{{ tokens(block.target) }}</span></span>
{% endfor %}
</div>
{% endfor %}
{% if hidden %}
<p class="note">{{ "{:,}".format(hidden) }} more blocks are not shown.</p>
{% endif %}
</section>
<section id="examples">
<h2>Examples</h2>
<div class="scroll"><table>
<thead><tr><th>source token</th><th>id</th><th class="left">nearest target</th><th>id</th>
<th>distance</th></tr></thead>
<tbody>
{% for group in examples %}
{% for example in group %}
<tr><td class="token">{{ visible(example.source_bytes) }}</td><td>{{ example.source }}</td>
<td class="left token">{{ visible(example.target_bytes) }}</td><td>{{ example.target }}</td>
<td>{{ example.distance }}</td></tr>
{% endfor %}
{% endfor %}
</tbody>
</table></div>
</section>
</main>
</body>
</html>
"""


@dataclass(frozen=True, slots=True)
class Bar:
    """How many tokens are at one distance; the bar's length in percent of all."""

    label: str
    count: int
    share: str
    percent: str
    tone: str


def render(
    source: str,
    target: str,
    statistics: TableStatistics,
    coverage: Coverage,
    texts: Sequence[TextAlignment],
    examples: Sequence[Sequence[Example]],
    *,
    unit: str,
    mode: str,
) -> str:
    """The page as text, for two tokenizers by name."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals |= {"visible": visible, "describe": _describe}
    return environment.from_string(_TEMPLATE).render(
        source=clean(source),
        target=clean(target),
        style=Markup(STYLE + _STYLE),
        statistics=statistics_rows(statistics, unit),
        bars=_bars(statistics, unit),
        coverage=coverage_rows(coverage),
        texts=texts,
        hidden=sum(text.total - len(text.blocks) for text in texts),
        examples=examples,
        unit=unit,
        mode=mode,
        marks=MARKS,
        meanings=MEANINGS,
        joint=JOINT,
        alone=ALONE,
        nothing=NOTHING,
        space=SPACE,
    )


def _bars(statistics: TableStatistics, unit: str) -> list[Bar]:
    whole = max(statistics.tokens, 1)
    tones = ["exact", "near", "near", "near", "none"]
    rows = zip(distance_labels(unit), statistics.by_distance, tones, strict=True)
    return [
        Bar(label, n, share(n, statistics.tokens), f"{100 * n / whole:.2f}", tone)
        for label, n, tone in rows
    ]


def _describe(token: Token) -> str:
    """What a reader sees on pointing at a token."""
    if token.nearest is None:
        return f"target id {token.id}"
    near = f"nearest {visible(token.nearest)}, distance {token.distance}"
    return f"source id {token.id}; {near}"
