// What the page does beside htmx: charts, a timeline that follows, marks of tiers, keys, the theme.
"use strict";

const root = document.documentElement;
const reduced = matchMedia("(prefers-reduced-motion: reduce)").matches;
const css = (name) => getComputedStyle(root).getPropertyValue(name).trim();
const many = new Intl.NumberFormat("en-US", {maximumFractionDigits: 2});
const short = new Intl.NumberFormat("en-US", {notation: "compact", maximumFractionDigits: 1});

class Chart extends HTMLElement {
  static observedAttributes = ["spec"];
  connectedCallback() {
    this.sized = new ResizeObserver(() => {
      if (this.plot && this.clientWidth) this.plot.setSize({width: this.clientWidth, height: this.plot.height});
    });
    this.sized.observe(this);
    this.draw();
  }
  disconnectedCallback() {
    this.sized.disconnect();
    this.clear();
  }
  attributeChangedCallback(name, before, after) {
    if (this.isConnected && before !== after && before !== null) this.draw();
  }
  clear() {
    if (this.plot) this.plot.destroy();
    this.plot = null;
  }
  draw() {
    this.clear();
    const spec = JSON.parse(this.getAttribute("spec"));
    const bars = spec.kind === "bars";
    const colours = ["--c1", "--c2", "--c3", "--c4", "--c5", "--c6"].map(css);
    const step = spec.x.length > 1 ? spec.x[1] - spec.x[0] : 1;
    const series = spec.series.map((one, place) => ({
      label: one.name,
      stroke: colours[place],
      width: bars ? 0 : 1.6,
      fill: bars ? colours[place] : undefined,
      paths: bars && place === 0 ? uPlot.paths.bars({size: [0.72, 46]}) : undefined,
      points: {show: bars && place > 0 ? true : spec.x.length < 60 && !bars, size: 5},
      value: (_, value) => (value === null || value === undefined ? "–" : many.format(value)),
    }));
    const axis = {stroke: css("--dim"), grid: {stroke: css("--line"), width: 1}, ticks: {stroke: css("--line"), width: 1, size: 4},
      font: "11px system-ui, sans-serif"};
    const times = (_, places, __, ___, step) => {
      let day = "";
      return places.map((at) => {
        const text = new Date(at * 1000).toISOString();
        const before = day;
        day = text.slice(5, 10);
        return step >= 86400 ? day : before === day ? text.slice(11, 16) : `${text.slice(11, 16)}\n${day}`;
      });
    };
    const label = (at) => spec.labels?.[at] ?? "";
    const options = {
      width: this.clientWidth || 600,
      height: Number(this.getAttribute("height")) || 200,
      tzDate: (at) => uPlot.tzDate(new Date(at * 1000), "Etc/UTC"),
      scales: {
        x: {time: spec.time, range: bars ? (_, low, high) => [low - step / 2, high + step / 2] : undefined},
        y: {range: (_, low, high) => (low === null ? [0, 1] : low === high && low === 0 ? [0, 1] : uPlot.rangeNum(Math.min(0, low), high, {min: {pad: 0, soft: 0, mode: 1}, max: {pad: 0.08}}))},
      },
      legend: {live: true},
      cursor: {y: false, points: {show: !bars}},
      series: [{label: spec.name, value: spec.labels ? (_, at) => (at === null ? "–" : label(at)) : spec.time ? "{YYYY}-{MM}-{DD} {HH}:{mm}" : undefined}, ...series],
      axes: [
        {...axis, grid: {show: false}, ...(spec.labels ? {
          splits: () => spec.x.filter((at) => at % Math.ceil(spec.x.length / Math.max(1, this.clientWidth / 90)) === 0),
          values: (_, places) => places.map((at) => label(at).slice(0, 14))} : spec.time ? {values: times} : {})},
        {...axis, size: 52, values: (_, values) => values.map((value) => short.format(value))},
      ],
    };
    this.plot = new uPlot(options, [spec.x, ...spec.series.map((one) => one.y)], this);
  }
}

class Tiers extends HTMLElement {
  // Runs of seqs and the tier each is in, put on the entries of the timeline.
  static observedAttributes = ["runs"];
  connectedCallback() { this.mark(); }
  attributeChangedCallback() { if (this.isConnected) this.mark(); }
  mark(entries = document.querySelectorAll("#entries .entry")) {
    const runs = JSON.parse(this.getAttribute("runs") || "[]");
    for (const entry of entries) {
      const seq = Number(entry.dataset.seq);
      const run = runs.find(([first, last]) => first <= seq && seq <= last);
      if (!run || entry.classList.contains(`t-${run[2]}`)) continue;
      entry.classList.remove("t-hot", "t-warm", "t-cold");
      entry.classList.add(`t-${run[2]}`);
      entry.querySelector(".tier-name").textContent = run[2];
    }
  }
}

const FOLLOWED_MAX = 1000;
const nearEnd = () => innerHeight + scrollY >= document.body.scrollHeight - 160;

function follow(list) {
  const told = document.getElementById("following");
  const say = (state, text) => { told.className = `following ${state}`; told.lastElementChild.textContent = text; };
  const source = new EventSource(list.dataset.follow);
  let ended = false;
  source.addEventListener("open", () => say("on", "follows live"));
  source.addEventListener("error", () => { if (!ended) say("off", source.readyState === 2 ? "not connected: reload" : "not connected: trying again"); });
  source.addEventListener("problem", (event) => { ended = true; source.close(); say("off", JSON.parse(event.data).detail); });
  source.addEventListener("entry", (event) => {
    const piece = document.createElement("template");
    piece.innerHTML = event.data;
    const entry = piece.content.firstElementChild;
    if (document.getElementById(entry.id)) return;
    const stick = nearEnd();
    entry.classList.add("new");
    list.append(entry);
    document.querySelector("tc-tiers")?.mark([entry].filter((one) => one.classList.contains("entry")));
    while (list.children.length > FOLLOWED_MAX) list.firstElementChild.remove();
    if (stick) scrollTo({top: document.body.scrollHeight, behavior: reduced ? "auto" : "smooth"});
  });
  addEventListener("pagehide", () => source.close());
}

function watchConnection() {
  // The part that is polled says when it was made: when that is long ago, the server is away.
  const live = document.getElementById("live");
  if (!live) return;
  let at = "", since = Date.now();
  setInterval(() => {
    const now = live.querySelector("[data-at]")?.dataset.at;
    if (now !== at) { at = now; since = Date.now(); }
    document.getElementById("stale").hidden = Date.now() - since < 15000;
  }, 1000);
}

function toggleTheme() {
  const dark = (root.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  root.dataset.theme = dark ? "light" : "dark";
  try { localStorage.setItem("thermocline-theme", root.dataset.theme); } catch { /* for this page only */ }
  for (const chart of document.querySelectorAll("tc-chart")) chart.draw();
}

function step(forward) {
  const entries = [...document.querySelectorAll("#entries > li, .list tbody tr a, .hits li a")];
  if (!entries.length) return;
  const place = entries.indexOf(document.activeElement.closest?.("#entries > li") ?? document.activeElement);
  const next = entries[Math.min(entries.length - 1, Math.max(0, place + (forward ? 1 : -1)))];
  next.focus({preventScroll: true});
  next.scrollIntoView({block: "center", behavior: reduced ? "auto" : "smooth"});
}

function onKey(event) {
  const field = event.target.closest("input, textarea, select");
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && event.target.form) {
    event.preventDefault();
    event.target.form.requestSubmit();
  }
  if (field || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "/") {
    const search = document.querySelector("#search, #sql");
    if (search) { event.preventDefault(); search.focus(); } else location.href = "/conversations";
  }
  if (event.key === "j" || event.key === "k") step(event.key === "j");
}

customElements.define("tc-chart", Chart);
customElements.define("tc-tiers", Tiers);
const button = document.getElementById("theme");
button.hidden = false;
button.addEventListener("click", toggleTheme);
document.addEventListener("keydown", onKey);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { for (const chart of document.querySelectorAll("tc-chart")) chart.draw(); });
const list = document.querySelector("[data-follow]");
if (list) follow(list);
watchConnection();
