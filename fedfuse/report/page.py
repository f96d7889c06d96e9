"""The frame and style of all pages: in Python, since Flower's bundles carry no HTML or CSS."""

from __future__ import annotations

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

_STYLE = """
:root {
  color-scheme: light dark;
  --ground: #ffffff; --ink: #1b1f24; --muted: #5b6470; --line: #d9dee4; --soft: #f5f7f9;
  --better: #0a7a4b; --worse: #b3261e; --accent: #0f7fc4;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --ground: #14171b; --ink: #e6e9ed; --muted: #9aa4b0; --line: #343b44; --soft: #1c2127;
    --better: #4cc38a; --worse: #ff8a80; --accent: #56b4e9;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 2.5rem 1.5rem 4rem; max-width: 62rem;
  background: var(--ground); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
  overflow-wrap: break-word;
}
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .2rem; letter-spacing: -.01em; }
h2 { font-size: 1.25rem; margin: 2.8rem 0 .6rem; padding-top: .9rem;
  border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.6rem 0 .4rem; }
p { margin: .5rem 0; max-width: 46rem; }
.meta, .note, figcaption { color: var(--muted); font-size: .875rem; }
.meta { margin-bottom: 1.4rem; }
.status { font-weight: 600; }
.status.failed { color: var(--worse); }
.status.finished { color: var(--better); }
figure { margin: 1rem 0 1.4rem; }
figcaption { max-width: 46rem; margin-top: .4rem; }
svg { display: block; height: auto; max-width: 100%; color: var(--ink); }
svg text { font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue",
  sans-serif !important; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .38rem .7rem; text-align: right; vertical-align: top;
  border-bottom: 1px solid var(--line); }
th { font-weight: 600; }
thead th { color: var(--muted); border-bottom-width: 2px; vertical-align: bottom;
  white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
tbody th { max-width: 16rem; }
td small { display: block; color: var(--muted); font-size: .8rem; white-space: nowrap; }
td.left, th.left { text-align: left; }
tr.floor td, tr.floor th, tr.all td, tr.all th { border-top: 2px solid var(--line); }
.better { color: var(--better); font-weight: 600; }
.worse { color: var(--worse); font-weight: 600; }
.own { color: var(--muted); font-weight: 400; }
.side { display: flex; flex-wrap: wrap; gap: 0 2.5rem; align-items: flex-start; }
.side table { font-size: .85rem; }
.side th:not(:first-child), .side td { padding: .3rem .5rem; }
details { margin: .8rem 0; }
summary { cursor: pointer; color: var(--accent); font-weight: 600; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1.2rem; font-size: .875rem;
  margin: .3rem 0 1rem; }
dt { color: var(--muted); max-width: 20rem; }
dd { margin: 0; font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace;
  min-width: 0; }
@media print {
  body { max-width: none; padding: 0; font-size: 11pt; }
  figure, table, .side > div { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
  .scroll { overflow: visible; }
}
"""

# ``table``: rows of texts under headings, the first column in bold; "<" before a heading aligns its
# column left, the cells of the column ``bad`` show that something got worse.
_START = """\
{% macro table(headings, rows, bad="") %}
<div class="scroll"><table>
<thead><tr>
{% for heading in headings %}
<th{% if heading[0] == "<" %} class="left"{% endif %}>{{ heading.removeprefix("<") }}</th>
{% endfor %}
</tr></thead>
<tbody>
{% for row in rows %}
<tr><th>{{ row[0] }}</th>
{% for heading in headings[1:] %}
<td{% if heading[0] == "<" %} class="left"{% elif heading == bad %} class="worse"{% endif -%}
>{{ row[loop.index] }}</td>
{% endfor %}
</tr>
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
<title>{{ title }}</title>
<style>{{ style }}</style>
</head>
"""


def render_page(body: str, title: str, style: str = "", **values: object) -> str:
    """A page of a template's body; values are escaped, and scripts and loading forbidden.

    Args:
        body: Jinja template of ``<body>``, which may call ``table``.
        title: text of the title.
        style: CSS in addition to that of all pages.
        values: values by the names that the template calls them.
    """
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(f"{_START}{body}</html>\n")
    return template.render(title=title, style=Markup(_STYLE + style), **values)
