"""The body of a run's report, for ``page.render_page``."""

from __future__ import annotations

BODY = """\
{% macro measure(cell) %}
{% if cell.loss %}
<td><span class="{{ cell.trend }}">{{ cell.loss }}</span>
{%- if cell.excess or cell.accuracy %}<small>{{ cell.excess }}
{%- if cell.excess and cell.accuracy %} &middot; {% endif %}{{ cell.accuracy }}</small>
{%- endif %}</td>
{% else %}
<td></td>
{% endif %}
{% endmacro %}
{% macro figure(name, caption) %}
{% if plots[name] %}
<figure aria-label="{{ caption }}">
{{ plots[name] }}
<figcaption>{{ caption }}</figcaption>
</figure>
{% endif %}
{% endmacro %}
{% macro cost(row) %}
<td>{{ row.sent }}</td><td>{{ row.received }}</td><td>{{ row.seconds }}</td>
<td>{{ row.messages }}</td>
{% if in_all.failures %}
<td{% if row.failures %} class="worse"{% endif %}>{{ row.failures }}</td>
{% endif %}
{% endmacro %}
{% set above = "loss above the entropy floor" if run.has_floor else "loss" %}
<body>
<header>
<h1>{{ run.title }}</h1>
<p class="meta"><span class="status {{ run.status }}">{{ run.status }}</span>
{%- if run.config.get("strategy") %} &middot; strategy {{ run.config["strategy"] }}{% endif %}
 &middot; seed {{ run.seed }}
{%- if run.commit %} &middot; commit {{ run.commit[:12] }}{% endif %}</p>
<p id="summary">{{ summary | join(" ") }}</p>
{% if run.plotted | length < run.clients | length %}
<p class="note">Plots show the first {{ run.plotted | length }} of {{ run.clients | length }}
clients, tables all of them.</p>
{% endif %}
</header>
<main>
{{ figure("headline", "Each row is a model, each mark one way to train it; values are means over"
  ~ " domains. Further left is better."
  ~ (" The bar joins what the model is without federation (server: zero-shot, clients: standalone)"
  ~ " with what federation made of it." if gain_title else "")) }}
{% if results %}
<section id="results">
<h2>Results</h2>
<div class="scroll"><table>
<thead><tr><th>model</th>
{% for stage in run.stages %}
<th>{{ stage }}</th>
{% endfor %}
{% if gain_title %}
<th>{{ gain_title }}</th>
{% endif %}
</tr></thead>
<tbody>
{% for row in results %}
<tr><th>{{ row.name }}</th>
{% for cell in row.cells %}
{{ measure(cell) }}
{% endfor %}
{% if gain_title %}
<td class="{{ row.trend }}">{{ row.gain }}</td>
{% endif %}
</tr>
{% endfor %}
{% if run.has_floor %}
<tr class="floor"><th>entropy floor</th><td>{{ floor.loss }}
{%- if floor.accuracy %}<small>{{ floor.accuracy }}</small>{% endif %}</td>
{% for _ in range(run.stages | length - (0 if gain_title else 1)) %}
<td></td>
{% endfor %}
</tr>
{% endif %}
</tbody>
</table></div>
<p class="note">In each cell: loss in nats/byte
{%- if run.has_floor %}, its excess over the entropy floor{% endif %}
{%- if with_accuracy %}, accuracy on multiple-choice questions{% endif %};
 means over domains at the stage&rsquo;s last round.
{% if gain_title %}
{{ gain_note[0] | upper }}{{ gain_note[1:] }}.
{% endif %}
{% if run.has_floor %}
Entropy floor: the best any model can do, known because the source of the data is.
{% endif %}
{{ late | join(" ") }}</p>
<details><summary>Every domain</summary>
<div class="scroll"><table>
<thead><tr><th>model</th><th class="left">domain</th>
{% for stage in run.stages %}
<th>{{ stage }}</th>
{% endfor %}
</tr></thead>
<tbody>
{% for row in domain_rows %}
<tr><th>{{ row.name }}</th><td class="left">{{ row.domain }}
{%- if row.own %} <span class="own">(own)</span>{% endif %}</td>
{% for cell in row.cells %}
{{ measure(cell) }}
{% endfor %}
</tr>
{% endfor %}
</tbody>
</table></div>
</details>
</section>
{% endif %}
{% if prompts %}
<section id="prompts">
<h2>The prompt</h2>
<p>{{ prompts }}</p>
<div class="scroll"><table>
<thead><tr><th>round</th><th class="left">prompt</th><th class="left">chosen</th><th>test</th>
<th>private</th><th>queries</th></tr></thead>
<tbody>
{% for row in prompt_rows %}
<tr><th>{{ row.name }}</th><td class="left">
{% for word, clients in row.tokens %}
<span{% if clients %} title="from {{ clients }}"{% endif %}>{{ word }}
{%- if clients %}<sub>{{ clients }}</sub>{% endif %}</span>
{% endfor %}
</td><td class="left">{{ row.chosen }}</td><td>{{ row.test }}</td><td>{{ row.private }}</td>
<td>{{ row.queries }}</td></tr>
{% endfor %}
</tbody>
</table></div>
<p class="note">Below a token: the clients whose prompts it was taken from. Private: mean accuracy
on the clients&rsquo; own examples. Queries: paid since the run began; of a client&rsquo;s own
prompt, those of its last search.</p>
{{ figure("accuracy_by_queries", "Accuracy of the global prompt after each round, against all"
  ~ " queries that it took: the clients' searches and the server's validation.") }}
{{ figure("token_clusters", "Tokens that clients sent, by their contextual embeddings (two"
  ~ " principal components). Colours are clusters, crosses noise; what was kept is ringed.") }}
</section>
{% endif %}
{% if plots.curves %}
<section id="curves">
<h2>Round by round</h2>
{{ figure("curves", "Each model's " ~ above ~ " after every federated round, mean over domains."
  ~ (" Dashed lines are the baselines." if baselines else "")) }}
</section>
{% endif %}
{% if plots.heat_map %}
<section id="domains">
<h2>Who knows what</h2>
{{ figure("heat_map", "Clients by domains: " ~ above ~ " in nats/byte. Paler is better,"
  ~ " grey has diverged." ~ (" A client's own domain is framed." if run.own_domain else "")) }}
</section>
{% endif %}
{% if regressions %}
<section id="regressions">
<h2>What got worse</h2>
<p>{{ regressions }}</p>
{% if worse %}
{{ table(["model", "<domain", "untouched", "federated", "change"], worse, "change") }}
{% endif %}
<p class="note">Loss in nats/byte on the same test samples before the first round and after the
last. Noise: 1.645 standard errors of the mean change of a sample.</p>
{% if taken_back %}
<h3>Taken back</h3>
{{ table(["model", "round", "<change of held-out loss"], taken_back) }}
<p class="note">What these phases taught was not kept, because a domain of the held-out set got
worse beyond noise.</p>
{% endif %}
</section>
{% endif %}
{% if plots.teachers_up or plots.teachers_down %}
<section id="teachers">
<h2>Who taught what</h2>
{% if plots.teachers_up %}
<h3>Clients to server</h3>
{{ figure("teachers_up", "For each domain and round: the share of the domain's public samples on"
  ~ " which the server learned from each client; where nobody taught, it learned from the labels"
  ~ " alone.") }}
{% endif %}
{% if plots.teachers_down %}
<h3>Server to clients</h3>
{{ figure("teachers_down", "For each client, domain and round: the share of the domain's public"
  ~ " samples (a strip's height is all of them) on which the client learned from the server; where"
  ~ " nobody taught, it learned from the labels alone.") }}
{% endif %}
</section>
{% endif %}
{% if plots.gates %}
<section id="gates">
<h2>How gates learned</h2>
{{ figure("gates", "What each learned gate minimises, on samples that it did not learn"
  ~ " from, before and after the learning of every round. Lower is better; between rounds it moves"
  ~ " because the models do.") }}
</section>
{% endif %}
{% if run.messages %}
<section id="messages">
<h2>Bytes and seconds</h2>
{{ figure("traffic", "Serialized messages as the server sends and receives them. Round 0 is the"
  ~ " registration.") }}
<div class="side">
{% for what, rows in costs %}
<div class="scroll"><h3>By {{ what }}</h3>
<table>
<thead><tr><th>{{ what }}</th><th>sent</th><th>received</th><th>time</th><th>tasks</th>
{% if in_all.failures %}
<th>failed</th>
{% endif %}
</tr></thead>
<tbody>
{% for row in rows %}
<tr><th>{{ row.name }}</th>{{ cost(row) }}</tr>
{% endfor %}
<tr class="all"><th>{{ in_all.name }}</th>{{ cost(in_all) }}</tr>
</tbody>
</table></div>
{% endfor %}
</div>
<p class="note">Sent: server to clients; received: clients to server. Time is summed over tasks, of
which those of different clients may run side by side.</p>
</section>
{% endif %}
{% if efforts %}
<section id="efforts">
<h2>What training took</h2>
{{ table(["model", "<stage", "steps", "private samples", "public samples", "queries"], efforts) }}
<p class="note">Optimizer steps, and samples as often as they were seen in them. Queries: samples
that teachers were asked about. A baseline takes back what harmed validation samples, and that is
counted. Centralized: public samples are among the private ones.</p>
</section>
{% endif %}
{% if failures or events %}
<section id="failures">
<h2>What went wrong</h2>
{% if absences %}
{{ table(["client", "<rounds without any reply of it"], absences) }}
{% endif %}
{% if events %}
{{ table(["round", "<who", "<what", "<details"], events) }}
{% endif %}
{% if failures %}
{{ table(["client", "<phase", "<rounds", "<error"], failures) }}
{% endif %}
</section>
{% endif %}
<section id="settings">
<h2>Made with</h2>
<details><summary>Resolved configuration, models and versions</summary>
{% for heading, values in settings %}
<h3>{{ heading }}</h3>
<dl>
{% for key, value in values.items() %}
<dt>{{ key }}</dt><dd>{{ value }}</dd>
{% endfor %}
</dl>
{% endfor %}
</details>
</section>
</main>
</body>
"""
