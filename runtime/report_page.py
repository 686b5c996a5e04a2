"""Style and script of ``report.html``, as text: the page carries both inside."""

STYLE = """
:root {
  --page: #f6f7f9; --card: #fff; --ink: #1b1f24; --quiet: #57606a; --line: #d0d7de;
  --accent: #0b5cad; --bad: #b3261e; --good: #1a6b34; --warn-back: #fff4d6; --warn-ink: #5c4300;
  --strong: #b45309;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --page: #121417; --card: #1c2025; --ink: #e8eaed; --quiet: #a8b0b9; --line: #363d45;
    --accent: #7db7f2; --bad: #ff8a80; --good: #7fd69a; --warn-back: #3a2f10; --warn-ink: #ffe08a;
    --strong: #ffb040;
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
.skip { position: absolute; left: -100vw; padding: .5rem 1rem; background: var(--card); }
.skip:focus { left: .5rem; top: .5rem; z-index: 1; }
.notice { margin: .25rem 0 1rem; color: var(--quiet); }
.counts { display: flex; flex-wrap: wrap; gap: .6rem; margin: 0 0 1rem; padding: 0;
  list-style: none; }
.counts li { padding: .5rem .9rem; border: 1px solid var(--line); border-radius: .5rem;
  background: var(--card); }
.counts b { font-size: 1.3rem; font-variant-numeric: tabular-nums; }
.counts .bad, .counts .bad b { color: var(--bad); border-color: var(--bad); }
.counts .doubtful, .counts .doubtful b { color: var(--warn-ink); border-color: var(--warn-ink); }
.counts a { color: inherit; }
.badge { display: inline-block; padding: 0 .5rem; border: 1px solid; border-radius: 1rem;
  font-size: .85rem; font-weight: 600; line-height: 1.5; white-space: nowrap; }
.badge.ok { color: var(--good); }
.badge.suspect { color: var(--warn-ink); background: var(--warn-back); }
.badge.rejected { color: var(--bad); }
.doubt { margin: 0 0 .5rem; padding: .4rem .75rem; border-radius: .35rem; overflow-wrap: anywhere;
  background: var(--warn-back); color: var(--warn-ink); }
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
td { white-space: nowrap; }
td.text { min-width: 8rem; white-space: normal; overflow-wrap: anywhere; }
tbody tr:last-child td { border-bottom: 0; }
#controls { display: flex; flex-wrap: wrap; align-items: center; gap: .75rem 1.25rem;
  margin: 1.25rem 0 0; }
#controls[hidden] { display: none; }
input, select { padding: .35rem .5rem; border: 1px solid var(--quiet); border-radius: .35rem;
  background: var(--card); color: inherit; font: inherit; max-width: 100%; }
.cards { display: grid; gap: 1rem; margin: 0; padding: 0; list-style: none;
  grid-template-columns: repeat(auto-fill, minmax(min(23rem, 100%), 1fr)); }
.cards li { padding: .75rem; border: 1px solid var(--line); border-radius: .5rem;
  background: var(--card); min-width: 0; }
.cards .wide { grid-column: 1 / -1; }
.cards li:target { border-color: var(--accent); }
.cards h3 { margin: 0 0 .5rem; }
.pictures { display: grid; gap: .5rem; align-items: start; margin-bottom: .6rem;
  grid-template-columns: repeat(auto-fit, minmax(min(16rem, 100%), 1fr)); }
.findings { display: grid; gap: .75rem 2rem; align-items: start;
  grid-template-columns: repeat(auto-fit, minmax(min(24rem, 100%), 1fr)); }
.profile { margin: 0; font-size: .9rem; color: var(--quiet); font-variant-numeric: tabular-nums; }
.profile b { color: var(--strong); font-weight: 600; }
.profile svg { display: block; width: 100%; height: 6rem; margin-top: .35rem; }
.profile .bars { fill: var(--quiet); }
.profile .worst { fill: var(--strong); }
.profile .line { stroke: var(--line); fill: none; vector-effect: non-scaling-stroke; }
.ends { display: flex; justify-content: space-between; }
.parts { margin-top: .6rem; font-size: .92rem; }
.parts summary { cursor: pointer; }
.parts .scroll { margin-top: .4rem; }
.parts th, .parts td { padding: .25rem .5rem; }
.parts p { margin: .4rem 0 0; color: var(--quiet); }
.cards img { display: block; width: 100%; height: auto; border-radius: .25rem;
  background: #111114; }
.cards dl { margin: 0; font-size: .92rem; font-variant-numeric: tabular-nums; }
.cards dt { width: 7.5rem; }
.rank { color: var(--quiet); font-weight: 400; margin-right: .35rem; }
.rank::after { content: "."; }
.missing { margin: 0; padding: 2rem 1rem; text-align: center; color: var(--quiet);
  border: 1px dashed var(--line); border-radius: .25rem; }
li[hidden], tr[hidden], section[hidden] { display: none; }
footer { margin-top: 2rem; padding-top: .5rem; border-top: 1px solid var(--line);
  color: var(--quiet); font-size: .9rem; }
@media (max-width: 34rem) {
  body { padding: .8rem; }
  th, td { padding: .4rem .5rem; }
  .facts dl div { flex-direction: column; gap: 0; }
  .facts dt { width: auto; }
  .histogram text { font-size: 26px; }
}
@media print {
  body { padding: 0; max-width: none; background: none; font-size: 10pt; }
  #controls, .skip { display: none; }
  .cards li, tr, figure { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
  .scroll { overflow: visible; }
  .profile path, .histogram rect, .badge, .doubt, .warning { print-color-adjust: exact; }
}
"""

SCRIPT = """
"use strict";
{
  const cards = document.getElementById("cards");
  const find = document.getElementById("find");
  const sort = document.getElementById("sort");
  const found = document.getElementById("found");
  const verdict = document.getElementById("verdict");
  const counted = "#cards > li, #rows > tr, #failures > tr";
  const all = [...document.querySelectorAll(counted)];
  const listed = [...all, ...document.querySelectorAll("#suspects > tr")];
  const orders = {
    score: (a, b) => b.dataset.score - a.dataset.score,
    mask: (a, b) => b.dataset.mask - a.dataset.mask,
    name: (a, b) => a.dataset.name.localeCompare(b.dataset.name, undefined, { numeric: true }),
  };
  const filter = () => {
    const wanted = find.value.trim().toLowerCase();
    const judged = verdict ? verdict.value : "";
    for (const item of listed) {
      const named = item.dataset.name.toLowerCase().includes(wanted);
      item.hidden = !named || (judged !== "" && item.dataset.verdict !== judged);
    }
    const active = wanted !== "" || judged !== "";
    for (const section of document.querySelectorAll("section[data-list]")) {
      const items = listed.filter((item) => section.contains(item));
      section.hidden = active && items.every((item) => item.hidden);
    }
    const count = all.filter((item) => !item.hidden).length;
    found.textContent = active ? `${count} of ${all.length} scans` : "";
  };
  document.getElementById("controls").hidden = false;
  find.addEventListener("input", filter);
  verdict?.addEventListener("change", filter);
  sort.addEventListener("change", () => {
    cards?.append(...[...cards.children].sort(orders[sort.value]));
  });
  addEventListener("beforeprint", () => {
    for (const folded of document.querySelectorAll("details")) folded.open = true;
  });
}
"""
