// Draws the tiles of a sweep, keeps unchanged ones, and sends Python the ticks and the run to open.

const walls = new WeakMap();
const SIGNS = { queued: "·", starting: "▸", running: "▸", stopping: "▪", finished: "✓", failed: "✕", lost: "?", stopped: "▪", pruned: "–" };
const SEND_AFTER_MS = 120;
const WIDE = 100, HIGH = 30; // coordinates of a sparkline, which is stretched to its tile

const escape = (text) => String(text).replace(/[&<>"]/g, (c) => `&#${c.charCodeAt(0)};`);
const address = (id) => `run?id=${encodeURIComponent(id)}`; // relative to this page, so also correct below a base path

export default function ({ data, parentElement, setStateValue, setTriggerValue }) {
  let wall = walls.get(parentElement);
  if (!wall?.root.isConnected) walls.set(parentElement, (wall = new Wall(parentElement.querySelector(".wall"))));
  wall.emit = (ticked) => setStateValue("ticked", ticked);
  wall.ask = (run) => setTriggerValue("opened", run);
  wall.update(data);
  return () => wall.flush();
}

// Browsers can block storage; then a reload loses the ticks.
function remember(name, value) {
  try { sessionStorage.setItem(name, JSON.stringify(value)); } catch { /* blocked */ }
}

function recall(name) {
  try { return JSON.parse(sessionStorage.getItem(name)) ?? []; } catch { return []; }
}

class Wall {
  constructor(root) {
    this.root = root;
    [this.list, this.bar] = [".tiles", ".bar"].map((part) => root.querySelector(part));
    this.list.onchange = (event) => this.tick(event.target);
    this.list.onclick = (event) => this.click(event);
    this.bar.querySelector("button").onclick = () => { this.ticked.clear(); this.changed(); this.list.querySelector("input")?.focus(); };
    for (const type of ["pointerleave", "focusout"]) root.addEventListener(type, () => this.flush()); // before a click elsewhere
  }

  update({ sweep, top, tiles }) {
    if (sweep !== this.sweep) {
      this.sweep = sweep;
      this.items = new Map(); // trial -> its element
      this.ticked = new Set(recall(this.memory));
      if (this.ticked.size) this.changed();
    }
    const fresh = !this.items.size;
    for (const tile of tiles) this.draw(tile, top);
    // While the pointer or the focus is in the list, tiles do not move: new ones are added at the end.
    const still = !fresh && this.list.matches(":hover, :focus-within");
    const shown = still ? [...this.list.children].map((item) => item.trial) : [];
    const order = new Set([...shown, ...tiles.map((tile) => tile.trial)]);
    this.place([...order].map((trial) => this.items.get(trial)));
    this.drawBar();
  }

  draw(tile, top) {
    let item = this.items.get(tile.trial);
    if (!item) this.items.set(tile.trial, (item = Object.assign(document.createElement("li"), { trial: tile.trial })));
    const html = this.html(tile, top);
    if (item.html !== html) {
      const at = item.contains(this.active) && this.active.dataset.at;
      item.innerHTML = item.html = html;
      if (at) item.querySelector(`[data-at="${at}"]`)?.focus();
      item.className = `tile ${tile.state}`;
    }
    item.querySelector("input").checked = this.ticked.has(tile.trial);
  }

  html({ trial, label, state, best, runs, valid, test, n, note, sparklines }, top) {
    const chips = runs.map(([id, seed, status]) =>
      `<a class="${status}" href="${address(id)}" data-run="${escape(id)}" data-at="${escape(id)}" title="seed ${seed}: ${status}"
        aria-label="${escape(label)}, seed ${seed}: ${status}"><span>${seed}</span><span aria-hidden="true">${SIGNS[status]}</span></a>`);
    return `
      <div class="head">
        <label class="tick"><input type="checkbox" data-at="tick" aria-label="Tick ${escape(label)}"></label>
        <a class="title" href="${address(runs[0][0])}" data-run="${escape(runs[0][0])}" data-at="title" title="${escape(label)}">${escape(label)}</a>
        <span class="number" title="Trial number">${trial}</span>
      </div>
      <svg class="sparkline" viewBox="0 0 ${WIDE} ${HIGH}" preserveAspectRatio="none" aria-hidden="true">${
        sparklines.map((line) => `<path d="${pathOf(line, top)}"/>`).join("")}</svg>
      <dl class="numbers">
        <div><dt>Valid</dt><dd>${valid}</dd></div>
        <div><dt>Test</dt><dd>${test}</dd>${n && `<small>${n}</small>`}</div>
      </dl>
      ${note && `<p class="note" title="${escape(note)}">${escape(note)}</p>`}
      <div class="seeds"><span class="state">${state}</span><span>seeds</span>${chips.join("")}
        ${best ? '<span class="best">best so far</span>' : ""}</div>`;
  }

  // Moves only elements in another place: a moved element loses the focus.
  place(items) {
    const kept = new Set(items);
    for (const item of [...this.list.children]) if (!kept.has(item)) item.remove();
    items.forEach((item, k) => { if (this.list.children[k] !== item) this.list.insertBefore(item, this.list.children[k]); });
  }

  tick(box) {
    const { trial } = box.closest(".tile");
    if (box.checked) this.ticked.add(trial);
    else this.ticked.delete(trial);
    this.changed();
  }

  changed() {
    for (const [trial, item] of this.items) item.querySelector("input").checked = this.ticked.has(trial);
    this.drawBar();
    remember(this.memory, [...this.ticked]);
    this.pending = true;
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.flush(), SEND_AFTER_MS);
  }

  flush() {
    if (!this.pending) return;
    this.pending = false;
    clearTimeout(this.timer);
    this.emit([...this.ticked]);
  }

  drawBar() {
    const count = this.ticked.size;
    this.bar.querySelector("output").textContent = count ? `${count} ticked` : "Tick tiles to compare their runs.";
    this.bar.querySelector("button").hidden = !count;
  }

  click(event) {
    const link = event.target.closest("[data-run]");
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return; // the browser opens a new tab
    event.preventDefault();
    this.ask(link.dataset.run);
  }

  get memory() {
    return `sousa trials ${this.sweep}`;
  }

  get active() {
    return this.root.getRootNode().activeElement;
  }
}

// "M x y L x y ...": a gap starts a new line; an isolated point is drawn as a dot.
function pathOf(line, top) {
  let path = "", pen = "M", alone = false;
  for (let i = 0; i < line.length; i += 2) {
    if (line[i + 1] === null) { pen = "M"; continue; }
    if (pen === "M" && alone) path += "h.01";
    alone = pen === "M";
    path += `${pen}${(line[i] / 1000 * WIDE).toFixed(1)} ${(HIGH - line[i + 1] / Math.max(top, 1) * HIGH).toFixed(1)}`;
    pen = "L";
  }
  return alone ? `${path}h.01` : path;
}
