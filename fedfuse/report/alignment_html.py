"""Alignment of two tokenizers, as one self-contained HTML file."""

from __future__ import annotations

from collections.abc import Sequence

from fedfuse.alignment.side_by_side import Coverage, TextAlignment, Token
from fedfuse.alignment.statistics import Example, TableStatistics
from fedfuse.report import alignment_formatting as formatted
from fedfuse.report.page import render_page
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
.lone, .joint, .nothing { color: var(--muted); }
.token { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
@media print { .block { break-inside: avoid; } }
"""

_BODY = """\
{% macro tokens(side) %}
{% if not side %}<span class="nothing">{{ formatted.NOTHING }}</span>{% endif %}
{%- for token in side -%}
{%- if not loop.first %}<span class="joint">{{ formatted.JOINT }}</span>{% endif -%}
<span title="{{ describe(token) }}"
{%- if not formatted.has_partner(token) %} class="lone"{% endif -%}
>{{ formatted.marked(token) }}</span>
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
{% for row in distances %}
<tr><th>{{ row.label }}</th><td>{{ "{:,}".format(row.number) }}</td><td>{{ row.share }}</td>
<td><span class="bar {{ "exact" if loop.first else "none" if loop.last else "near" }}"
 style="width: {{ "%.2f" | format(100 * row.number / number) }}%"></span></td></tr>
{% endfor %}
</tbody>
</table>
</section>
<section id="texts">
<h2>Texts</h2>
{{ counts("texts", coverage) }}
<ul class="legend">
{% for match, mark in formatted.MARKS.items() %}
<li class="{{ match }}"><span class="mark">{{ mark }}</span> {{ formatted.MEANINGS[match] }}</li>
{% endfor %}
<li>{{ formatted.SIGNS }}; source above, target below</li>
</ul>
{% for text in texts if text.blocks %}
<div class="aligned">
{% for block in text.blocks %}
<span class="block {{ block.match }}"><span class="source">{{ tokens(block.source) }}</span>
<span class="mark">{{ formatted.MARKS[block.match] }}</span>
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
<tr><td class="token">{{ formatted.visible(example.source_bytes) }}</td>
<td>{{ example.source }}</td>
<td class="left token">{{ formatted.visible(example.target_bytes) }}</td>
<td>{{ example.target }}</td><td>{{ example.distance }}</td></tr>
{% endfor %}
{% endfor %}
</tbody>
</table></div>
</section>
</main>
</body>
"""


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
    source, target = clean(source), clean(target)
    return render_page(
        _BODY,
        f"{source} to {target} | fedfuse align",
        _STYLE,
        source=source,
        target=target,
        statistics=formatted.statistics_rows(statistics, unit),
        distances=formatted.distance_rows(statistics, unit),
        number=max(statistics.tokens, 1),
        coverage=formatted.coverage_rows(coverage),
        texts=texts,
        hidden=sum(text.total - len(text.blocks) for text in texts),
        examples=examples,
        unit=unit,
        mode=mode,
        formatted=formatted,
        describe=_describe,
    )


def _describe(token: Token) -> str:
    """Text that appears on pointing at a token."""
    if token.nearest is None:
        return f"target id {token.id}"
    near = f"nearest {formatted.visible(token.nearest)}, distance {token.distance}"
    return f"source id {token.id}; {near}"
