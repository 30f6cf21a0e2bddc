// Draws the given rows, keeps the ticks, and sends Python the ticks and the requested order and page.
// Streamlit calls the default export again whenever its data or the theme changes. Each mount keeps one Table.

const tables = new WeakMap();
const SEND_AFTER_MS = 120;
const MEMORY = "sousa ticked runs";

const elementOf = (html) => { const t = document.createElement("template"); t.innerHTML = html.trim(); return t.content.firstElementChild; };
const escape = (text) => String(text).replace(/[&<>"]/g, (c) => `&#${c.charCodeAt(0)};`);
const number = (n) => n.toLocaleString("en-US");
const two = (n) => String(n).padStart(2, "0");
const share = (value, n) => value === null ? "–" : `${(100 * value).toFixed(1)} %<small> n ${number(n)}</small>`;

const COLUMNS = [  // field, heading, cell
  ["title", "Title", (run) => `<a href="${escape(address(run.id))}" tabindex="-1">${escape(run.title)}</a>${under(run)}`],
  ["status", "Status", (run) => `<span class="badge ${run.status}">${run.status}</span>`],
  ["progress", "Progress", progress],
  ["sparkline", "Valid curve", sparkline],
  ["valid", "Best valid", (run) => share(run.valid, run.valid_n)],
  ["test", "Test", (run) => share(run.test, run.test_n)],
  ["weights", "Weights", (run) => `<span class="badge ${run.random ? "random" : "pretrained"}">${escape(run.weights)}</span>`],
  ["seed", "Seed", (run) => run.seed],
  ["created_ms", "Created", (run) => moment(run.created_ms)],
  ["took_s", "Took", (run) => run.took_s === null ? "–" : duration(run.took_s)],
  ["trainable", "Trainable", (run) => run.trainable === null ? "–" : number(run.trainable)],
  ["targets", "Targets", (run) => escape(run.targets)],
  ["backbone", "Backbone", (run) => escape(run.backbone)],
  ["data", "Data", (run) => escape(run.data)],
  ["device", "Device", (run) => escape(run.device)],
  ["id", "Id", (run) => `<code>${escape(run.id)}</code>`],
];

export default function ({ data, parentElement, setStateValue, setTriggerValue }) {
  let table = tables.get(parentElement);
  if (!table?.root.isConnected) tables.set(parentElement, (table = new Table(parentElement.querySelector(".root"))));
  table.set = setStateValue;
  table.trigger = setTriggerValue;
  table.update(data);
  return () => table.flush();
}

const address = (id) => new URL(`run?id=${encodeURIComponent(id)}`, document.baseURI).href;

function under(run) {
  const tags = run.tags.map((tag) => `<span class="tag">${escape(tag)}</span>`).join("");
  return tags || run.note ? `<div class="under">${tags}${run.note ? `<span class="note" title="${escape(run.note)}">${escape(run.note)}</span>` : ""}</div>` : "";
}

function progress(run) {
  if (run.progress === null) return "–";
  const percent = Math.round(100 * run.progress);
  return `<span class="bar" role="progressbar" aria-valuenow="${percent}" aria-label="Progress"><i style="width:${percent}%"></i></span><small> ${percent} %</small>`;
}

function sparkline(run) {  // always from 0 to 1, so that rows can be compared; NaN and infinite values are gaps
  const known = run.sparkline.filter((value) => value !== null);
  if (known.length < 2) return "–";
  const x = (i) => (1 + (62 * i) / (run.sparkline.length - 1)).toFixed(1);
  const y = (value) => (19 - 18 * value).toFixed(1);
  let pen = "M";
  const path = run.sparkline.map((value, i) => {
    const step = value === null ? "" : `${pen}${x(i)} ${y(value)}`;
    pen = value === null ? "M" : "L";
    return step;
  }).join("");
  const said = `Valid accuracy from ${(100 * known[0]).toFixed(0)} to ${(100 * known.at(-1)).toFixed(0)} per cent`;
  return `<svg class="sparkline" viewBox="0 0 64 20" role="img" aria-label="${said}"><path d="${path}"/></svg>`;
}

function moment(ms) {
  const at = new Date(ms);
  return `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())} ${two(at.getHours())}:${two(at.getMinutes())}`;
}

function duration(s) {
  const whole = Math.round(s);
  if (whole < 60) return `${s < 10 ? s.toFixed(1) : whole} s`;
  return whole < 3600 ? `${Math.floor(whole / 60)} min ${two(whole % 60)} s` : `${Math.floor(whole / 3600)} h ${two(Math.floor((whole % 3600) / 60))} min`;
}

// Browsers can block storage; then a reload loses the ticks.
function remember(ids) {
  try { sessionStorage.setItem(MEMORY, JSON.stringify(ids)); } catch { /* blocked */ }
}

function recall() {
  try { return JSON.parse(sessionStorage.getItem(MEMORY)) ?? []; } catch { return []; }
}

class Table {
  constructor(root) {
    this.root = root;
    this.$ = (selector) => root.querySelector(selector);
    [this.head, this.body, this.by, this.turn] = ["thead tr", "tbody", ".by", ".turn"].map(this.$);
    this.ticked = new Set();
    this.rev = -1;
    this.runs = [];
    // Streamlit has shortcuts on the document (r = rerun), where it cannot see that the target is an input.
    for (const type of ["keydown", "keyup", "keypress"]) root.addEventListener(type, (e) => e.stopPropagation());
    for (const type of ["pointerleave", "focusout"]) root.addEventListener(type, () => this.flush()); // before a click elsewhere
    this.body.onclick = (e) => this.click(e);
    this.body.onkeydown = (e) => this.key(e);
    this.body.addEventListener("focusin", (e) => this.rove(e.target.closest("tr")?.dataset.id));
    this.head.onclick = (e) => this.clickHead(e.target);
    this.by.onchange = () => this.sortBy(this.by.value);
    this.turn.onclick = () => this.look({ descending: !this.view().descending, page: 0 });
    this.$(".pager").onclick = (e) => this.go(e.target.dataset.go);
  }

  update(data) {
    const moved = this.data && (data.first !== this.data.first || data.of !== this.data.of);
    this.data = data;
    if (data.answers === this.wanted?.request) this.wanted = undefined;
    this.runs = data.rows.map((row) => Object.fromEntries(data.fields.map((field, i) => [field, row[i]])));
    let kept = [];
    if (data.seed_rev > this.rev) {
      this.rev = data.seed_rev;
      // After a reload Python has no state (seed_rev 0), but this tab still has the ticks.
      kept = data.seed_rev === 0 ? recall() : [];
      this.ticked = new Set(data.seed_rev === 0 ? kept : data.seed);
      this.from = undefined;
      if (data.seed_rev) remember(data.seed);
    }
    if (!this.runs.some((run) => run.id === this.active)) this.active = this.runs[0]?.id;
    this.drawHead();
    this.drawBody();
    this.drawTicks();
    this.drawFoot();
    if (kept.length) this.changed();
    if (moved) this.$(".scroll").scrollTop = 0;
    if (!this.wanted) this.root.removeAttribute("aria-busy");
  }

  // ---- messages to Python

  changed() {
    this.pending = true;
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.flush(), SEND_AFTER_MS);
    this.drawTicks();
  }

  flush() {
    if (!this.pending) return;
    this.pending = false;
    clearTimeout(this.timer);
    const ids = [...this.ticked];
    remember(ids);
    this.set("ticks", { rev: this.rev, ids });
  }

  // The last request, even if unanswered: a second click on a heading reverses the order that the first requested.
  view() {
    const { sort, descending, first, page_rows } = this.data;
    return this.wanted ?? { sort, descending, page: first / page_rows };
  }

  look(change) {
    this.root.setAttribute("aria-busy", "true");
    this.wanted = { ...this.view(), ...change, of: this.data.of, request: crypto.getRandomValues(new Uint32Array(1))[0] };
    this.set("view", this.wanted);
  }

  go(where) {
    const { page_rows, total } = this.data;
    const last = Math.max(0, Math.ceil(total / page_rows) - 1);
    const at = this.view().page;
    const page = { first: 0, back: at - 1, on: at + 1, last }[where];
    if (page !== undefined && page !== at) this.look({ page: Math.min(Math.max(0, page), last) });
  }

  // ---- drawing

  drawHead() {
    const { sortable, sort, descending } = this.data;
    const headings = COLUMNS.map(([field, name]) => {
      const by = sortable[field];
      const sorted = by === sort ? (descending ? "descending" : "ascending") : "none";
      const arrow = by === sort ? (descending ? "↓" : "↑") : "";
      return by
        ? `<th role="columnheader" scope="col" class="${field}" aria-sort="${sorted}"><button type="button" data-by="${by}">${name}<i aria-hidden="true">${arrow}</i></button></th>`
        : `<th role="columnheader" scope="col" class="${field}">${name}</th>`;
    });
    const html = `<th role="columnheader" scope="col" class="tick"><input type="checkbox" class="all" aria-label="Tick all runs on this page"></th>${headings.join("")}`;
    if (html === this.headHtml) return;
    const focused = this.root.getRootNode().activeElement?.dataset.by;
    this.headHtml = this.head.innerHTML = html;
    if (focused) this.head.querySelector(`[data-by="${focused}"]`)?.focus({ preventScroll: true });
    this.by.innerHTML = COLUMNS.filter(([field]) => sortable[field]).map(([field, name]) =>
      `<option value="${sortable[field]}" ${sortable[field] === sort ? "selected" : ""}>${name}</option>`).join("");
    this.turn.textContent = descending ? "↓" : "↑";
    this.turn.ariaLabel = descending ? "Highest first" : "Lowest first";
  }

  // Unchanged rows keep their elements, and the focused element keeps the focus when its row moves.
  drawBody() {
    const focused = this.body.contains(this.root.getRootNode().activeElement) && this.root.getRootNode().activeElement;
    const place = focused && { id: focused.closest("tr").dataset.id, kind: focused.matches("a") ? "a" : "input" };
    const old = new Map([...this.body.children].map((row) => [row.dataset.id, row]));
    this.runs.forEach((run, i) => {
      const html = this.cells(run);
      const row = old.get(run.id) ?? elementOf(`<table><tbody><tr role="row" data-id="${escape(run.id)}"></tr></tbody></table>`).querySelector("tr");
      old.delete(run.id);
      if (row.html !== html) { row.html = html; row.innerHTML = html; }
      if (this.body.children[i] !== row) this.body.insertBefore(row, this.body.children[i] ?? null);
    });
    for (const row of old.values()) row.remove();
    const lost = place && this.root.getRootNode().activeElement === null;
    if (lost) (this.row(place.id) ?? this.row(this.active))?.querySelector(place.kind)?.focus({ preventScroll: true });
  }

  cells(run) {
    const tick = `<td role="cell" class="tick"><input type="checkbox" tabindex="-1" aria-label="${escape(`Tick ${run.title}, ${run.id}`)}"></td>`;
    return tick + COLUMNS.map(([field, name, cell]) => `<td role="cell" class="${field}" data-name="${name}">${cell(run)}</td>`).join("");
  }

  drawTicks() {
    for (const row of this.body.children) {
      const on = this.ticked.has(row.dataset.id);
      row.querySelector("input").checked = on;
      row.classList.toggle("ticked", on);
      for (const part of [row.querySelector("input"), row.querySelector("a")]) part.tabIndex = row.dataset.id === this.active ? 0 : -1;
    }
    const count = this.runs.filter((run) => this.ticked.has(run.id)).length;
    const all = this.head.querySelector(".all");
    all.checked = count > 0 && count === this.runs.length;
    all.indeterminate = count > 0 && count < this.runs.length;
  }

  drawFoot() {
    const { first, total, page_rows } = this.data;
    const pages = Math.ceil(total / page_rows);
    const runs = total === 1 ? "run" : "runs";
    this.$(".said").textContent = pages > 1 ? `${number(first + 1)} to ${number(first + this.runs.length)} of ${number(total)} ${runs}` : `${number(total)} ${runs}`;
    this.$(".pager").hidden = pages <= 1;
    this.$(".at").textContent = `page ${number(first / page_rows + 1)} of ${number(pages)}`;
    for (const name of ["first", "back"]) this.$(`[data-go=${name}]`).disabled = first === 0;
    for (const name of ["on", "last"]) this.$(`[data-go=${name}]`).disabled = first + page_rows >= total;
  }

  // ---- mouse and keyboard

  row(id) {
    return id && [...this.body.children].find((row) => row.dataset.id === id);
  }

  rove(id) {
    if (!id || id === this.active) return;
    this.active = id;
    this.drawTicks();
  }

  tick(id, on, through) {
    const ids = this.runs.map((run) => run.id);
    const [a, b] = [ids.indexOf(this.from), ids.indexOf(id)];
    const these = through && a >= 0 ? ids.slice(Math.min(a, b), Math.max(a, b) + 1) : [id];
    for (const one of these) this.ticked[on ? "add" : "delete"](one);
    this.from = id;
    this.changed();
  }

  click(event) {
    const { target } = event;
    const id = target.closest("tr")?.dataset.id;
    if (!id) return;
    const link = target.closest("a");
    if (link) {
      if (event.ctrlKey || event.metaKey || event.shiftKey || event.button) return; // opens a new tab
      event.preventDefault();
      this.open(id);
    } else if (target.closest(".tick")) {
      const box = target.closest("tr").querySelector("input");
      this.tick(id, target === box ? box.checked : !box.checked, event.shiftKey);
    }
  }

  clickHead(target) {
    const by = target.closest("[data-by]")?.dataset.by;
    if (by) this.sortBy(by);
    else if (target.matches(".all")) {
      for (const run of this.runs) this.ticked[target.checked ? "add" : "delete"](run.id);
      this.changed();
    }
  }

  sortBy(by) {
    const { sort, descending } = this.view();
    this.look({ sort: by, page: 0, descending: by === sort ? !descending : !this.data.up_first.includes(by) });
  }

  open(id) {
    this.flush();
    this.trigger("open", id);
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const row = event.target.closest("tr");
    const onLink = event.target.matches("a");
    const rows = [...this.body.children];
    const at = rows.indexOf(row);
    const go = (i, kind = onLink ? "a" : "input") => rows[Math.max(0, Math.min(rows.length - 1, i))].querySelector(kind).focus();
    const keys = {
      "ArrowDown": () => go(at + 1), "ArrowUp": () => go(at - 1), "PageDown": () => go(at + 10), "PageUp": () => go(at - 10),
      "Home": () => go(0), "End": () => go(rows.length - 1),
      "ArrowRight": () => go(at, "a"), "ArrowLeft": () => go(at, "input"),
      " ": () => this.tick(row.dataset.id, !this.ticked.has(row.dataset.id), event.shiftKey),
      "Enter": () => this.open(row.dataset.id),
    };
    if (!keys[event.key]) return;
    event.preventDefault();
    keys[event.key]();
  }
}
