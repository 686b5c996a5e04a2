"""Style and script of ``report.html``, as text: the page carries both inside."""

STYLE = """
:root {
  --page: #f6f7f9; --card: #fff; --ink: #1b1f24; --quiet: #57606a; --line: #d0d7de;
  --accent: #0b5cad; --bad: #b3261e; --warn-back: #fff4d6; --warn-ink: #5c4300;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #121417; --card: #1c2025; --ink: #e8eaed; --quiet: #a8b0b9; --line: #363d45;
    --accent: #7db7f2; --bad: #ff8a80; --warn-back: #3a2f10; --warn-ink: #ffe08a;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 1.25rem; max-width: 100rem; background: var(--page); color: var(--ink);
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif;
}
h1 { margin: 0; font-size: 1.6rem; line-height: 1.25; }
h1 small { color: var(--quiet); font-weight: 400; overflow-wrap: anywhere; }
h2 { margin: 2rem 0 .75rem; font-size: 1.2rem; }
h3 { margin: .6rem 0 .3rem; font-size: 1rem; overflow-wrap: anywhere; }
h3, dd, td { unicode-bidi: isolate; }
a { color: var(--accent); }
:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; }
.notice { margin: .25rem 0 1rem; color: var(--quiet); }
.counts { display: flex; flex-wrap: wrap; gap: .6rem; margin: 0 0 1rem; padding: 0;
  list-style: none; }
.counts li { padding: .5rem .9rem; border: 1px solid var(--line); border-radius: .5rem;
  background: var(--card); }
.counts b { font-size: 1.3rem; font-variant-numeric: tabular-nums; }
.counts .bad, .counts .bad b { color: var(--bad); border-color: var(--bad); }
.warning { padding: .6rem .9rem; border-radius: .5rem; background: var(--warn-back);
  color: var(--warn-ink); overflow-wrap: anywhere; }
.gist { margin: 0 0 .75rem; color: var(--quiet); overflow-wrap: anywhere; }
.facts, .histogram { padding: .8rem 1rem; border: 1px solid var(--line); border-radius: .5rem;
  background: var(--card); }
.facts summary { font-weight: 600; cursor: pointer; }
.facts dl { display: grid; gap: .25rem 2rem; margin: .6rem 0 0;
  grid-template-columns: repeat(auto-fit, minmax(min(24rem, 100%), 1fr)); }
dl div { display: flex; gap: .75rem; min-width: 0; }
dt { flex: none; width: 8.5rem; color: var(--quiet); }
dd { flex: 1; margin: 0; min-width: 0; overflow-wrap: anywhere; }
.histogram { margin-top: 1.25rem; }
.histogram h2 { margin-top: 0; }
.histogram svg { display: block; width: 100%; max-width: 64rem; height: auto; }
.histogram rect { fill: var(--accent); }
.histogram path { stroke: var(--quiet); fill: none; }
.histogram text { fill: var(--quiet); font-size: 13px; }
.histogram p { margin: .5rem 0 0; color: var(--quiet); font-size: .9rem; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: .5rem;
  background: var(--card); }
table { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .4rem .8rem; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line); }
td { overflow-wrap: anywhere; }
tbody tr:last-child td { border-bottom: 0; }
#controls { display: flex; flex-wrap: wrap; align-items: center; gap: .75rem 1.25rem;
  margin: 0 0 1rem; }
#controls[hidden] { display: none; }
input, select { padding: .35rem .5rem; border: 1px solid var(--quiet); border-radius: .35rem;
  background: var(--card); color: inherit; font: inherit; max-width: 100%; }
.cards { display: grid; gap: 1rem; margin: 0; padding: 0; list-style: none;
  grid-template-columns: repeat(auto-fill, minmax(min(23rem, 100%), 1fr)); }
.cards li { padding: .75rem; border: 1px solid var(--line); border-radius: .5rem;
  background: var(--card); min-width: 0; }
.cards img { display: block; width: 100%; height: auto; border-radius: .25rem;
  background: #111114; }
.cards dl { margin: 0; font-size: .92rem; font-variant-numeric: tabular-nums; }
.cards dt { width: 6rem; }
.rank { color: var(--quiet); font-weight: 400; margin-right: .35rem; }
.rank::after { content: "."; }
.missing { margin: 0; padding: 2rem 1rem; text-align: center; color: var(--quiet);
  border: 1px dashed var(--line); border-radius: .25rem; }
li[hidden], tr[hidden] { display: none; }
footer { margin-top: 2rem; padding-top: .5rem; border-top: 1px solid var(--line);
  color: var(--quiet); font-size: .9rem; }
@media (max-width: 34rem) {
  body { padding: .8rem; }
  .facts dl div { flex-direction: column; gap: 0; }
  .facts dt { width: auto; }
  .histogram text { font-size: 26px; }
}
@media print {
  #controls { display: none; }
  .cards li { break-inside: avoid; }
}
"""

SCRIPT = """
"use strict";
{
  const cards = document.getElementById("cards");
  const find = document.getElementById("find");
  const sort = document.getElementById("sort");
  const found = document.getElementById("found");
  const all = [...document.querySelectorAll("#cards > li, #rows > tr")];
  const orders = {
    score: (a, b) => b.dataset.score - a.dataset.score,
    mask: (a, b) => b.dataset.mask - a.dataset.mask,
    name: (a, b) => a.dataset.name.localeCompare(b.dataset.name, undefined, { numeric: true }),
  };
  const filter = () => {
    const wanted = find.value.trim().toLowerCase();
    let count = 0;
    for (const item of all) {
      item.hidden = !item.dataset.name.toLowerCase().includes(wanted);
      count += item.hidden ? 0 : 1;
    }
    found.textContent = wanted ? `${count} of ${all.length} scans` : "";
  };
  if (cards) {
    document.getElementById("controls").hidden = false;
    find.addEventListener("input", filter);
    sort.addEventListener("change", () => {
      cards.append(...[...cards.children].sort(orders[sort.value]));
    });
  }
}
"""
