// Draws the visible rows, handles input, informs Python. Keys follow the ARIA tree pattern; Shift+Space ticks all like
// this, F2 edits the rank of the row.

const trees = new WeakMap();
const CHECK = '<svg viewBox="0 0 12 12"><path d="m2 6.4 2.7 2.7L10 3.4"/></svg>';
const DASH = '<svg viewBox="0 0 12 12"><path d="M2.5 6h7"/></svg>';
const TWIST = '<svg viewBox="0 0 12 12"><path d="m4 2 4 4-4 4"/></svg>';
const HEAD = { train: "trained fully", lora: "through LoRA", freeze: "frozen" };
const SEND_AFTER_MS = 120;
const TYPED_TOGETHER_MS = 700;

const elementOf = (html) => document.createRange().createContextualFragment(html.trim()).firstElementChild;
const escape = (text) => text.replace(/[&<>"]/g, (c) => `&#${c.charCodeAt(0)};`);
const number = (n) => n.toLocaleString("en-US");
const times = (shape) => shape.join(" × ");

export default function ({ data, parentElement, setStateValue }) {
  let tree = trees.get(parentElement);
  if (!tree?.root.isConnected) trees.set(parentElement, (tree = new View(parentElement.querySelector(".root"))));
  tree.emit = (value) => setStateValue("ticks", value);
  tree.update(data);
  return () => tree.close();
}

// A browser may forbid storage; then a reload starts from the initial ticks.
function remember(name, value) {
  try { sessionStorage.setItem(name, JSON.stringify(value)); } catch { /* forbidden */ }
}

function recall(name) {
  try { return JSON.parse(sessionStorage.getItem(name)); } catch { return null; }
}

class View {
  constructor(root) {
    this.root = root;
    this.$ = (selector) => root.querySelector(selector);
    [this.scroll, this.rows, this.input, this.menu] = [".scroll", ".rows", ".search input", ".menu"].map(this.$);
    this.typed = { text: "", at: 0 };
    const sheet = this.$(".grid");
    this.grid = new Grid(sheet, () => this.changed());
    sheet.open = recall("sousa grid") ?? matchMedia("(min-width: 640px)").matches;
    sheet.ontoggle = () => remember("sousa grid", sheet.open);
    // Streamlit has shortcuts on the document (r = rerun), which sees the shadow root and not our input.
    for (const type of ["keydown", "keyup", "keypress"]) root.addEventListener(type, (e) => e.stopPropagation());
    this.scroll.onscroll = () => this.draw();
    this.scroll.onclick = (e) => this.click(e);
    this.scroll.onkeydown = (e) => (e.target.matches(".rank") ? this.rankKey(e) : this.key(e));
    this.scroll.oninput = (e) => this.typeRank(e.target);
    this.scroll.oncontextmenu = (e) => {
      if (this.activateAt(e.target)) { e.preventDefault(); this.openMenu(e.clientX, e.clientY); }
    };
    this.input.oninput = () => this.search();
    this.input.onkeydown = (e) => this.inputKey(e);
    this.$(".tools").onclick = (e) => this.act(e.target.closest("button")?.dataset.act);
    this.menu.onclick = (e) => { const what = e.target.closest("button")?.dataset.act; this.closeMenu(); this.act(what); };
    this.menu.onkeydown = (e) => this.menuKey(e);
    root.onpointerdown = (e) => { if (!e.target.closest(".menu")) this.menu.hidden = true; };
    this.scroll.addEventListener("focusin", (e) => { if (e.target.matches(".rank")) this.activateAt(e.target); });
    this.scroll.addEventListener("focusout", (e) => { if (e.target.matches(".rank")) this.endRank(e.target); });
    for (const type of ["pointerleave", "focusout"]) root.addEventListener(type, () => this.flush()); // before a click elsewhere
    this.resized = new ResizeObserver(() => this.measure());
    this.resized.observe(this.scroll);
  }

  close() {
    this.flush();
    this.resized.disconnect();
  }

  update(data) {
    const fresh = data.outline !== this.model?.name;
    this.data = data;
    if (fresh) {
      this.model = new Model(data);
      this.grid.build(this.model);
      this.memory = `sousa ticks ${data.outline}`;
      this.active = 0;
      this.input.value = "";
      this.scroll.scrollTop = 0;
    }
    this.model.block(data.blocked);
    this.root.classList.toggle("ranked", data.method.ranks);
    if (fresh || data.seed_rev > this.rev) {
      this.rev = data.seed_rev;
      // After a reload Python starts from scratch (seed_rev 0), while this tab remembers its ticks.
      const kept = data.seed_rev === 0 && recall(this.memory);
      this.model.seed(kept?.paths ?? data.seed, kept?.ranks ?? data.seed_ranks);
      if (kept?.paths) this.changed();
    }
    this.refresh();
  }

  changed() {
    this.refresh();
    this.pending = true;
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.flush(), SEND_AFTER_MS);
  }

  flush() {
    if (!this.pending) return;
    this.pending = false;
    clearTimeout(this.timer);
    const { choice } = this.model;
    remember(this.memory, choice);
    this.emit({ outline: this.model.name, rev: this.rev, ...choice });
  }

  // ---- drawing

  refresh() {
    this.model.tally();
    this.lines = this.model.lines();
    while (!this.lines.includes(this.active) && this.active > 0) this.active = this.model.nodes[this.active].parent;
    this.drawCounts();
    this.drawTools();
    this.grid.draw();
    this.draw();
  }

  drawCounts() {
    const counts = this.model.count(this.data);
    for (const [name, value] of Object.entries(counts))
      this.$(`[data-count="${name}"]`).textContent = name === "percent" ? `${+value.toPrecision(3)} %` : number(value);
    this.$("[data-label=head]").textContent = `Head, ${HEAD[this.data.head]}`;
    this.$(".bar i").style.width = `${Math.min(100, counts.percent)}%`;
  }

  drawTools() {
    const { model } = this;
    const matches = model.matches().filter((node) => node.can);
    const on = matches.filter((node) => model.ticked[node.i]).length;
    const tick = this.$("[data-act=tick-matches]");
    tick.textContent = `Tick ${number(matches.length)}`;
    tick.ariaLabel = `Tick the ${number(matches.length)} matches`;
    tick.disabled = on === matches.length;
    this.$("[data-act=untick-matches]").disabled = on === 0;
    this.$(".matches").hidden = !model.hits;
    this.$(".wipe").hidden = !this.input.value;
    this.$(".found").textContent = model.bad ? "invalid" : model.hits ? `${number(model.hits.size)} found` : "";
    this.$(".search").classList.toggle("bad", model.bad !== "");
    this.$("[data-act=clear]").disabled = model.on[0] === 0;
  }

  measure() {
    this.rowHeight = parseFloat(getComputedStyle(this.scroll).getPropertyValue("--row")) || 30;
    this.root.style.setProperty("--gutter", `${this.scroll.offsetWidth - this.scroll.clientWidth}px`);
    this.draw();
  }

  draw() {
    if (!this.rowHeight) return this.measure();
    const first = Math.max(0, Math.floor(this.scroll.scrollTop / this.rowHeight) - 6);
    const last = Math.min(this.lines.length, first + Math.ceil(this.scroll.clientHeight / this.rowHeight) + 12);
    this.rows.style.height = `${this.lines.length * this.rowHeight}px`;
    this.drawRows(this.lines.slice(first, last).map((i, k) => ({ id: `n${i}`, html: this.row(i, first + k) })));
    this.scroll.setAttribute("aria-activedescendant", `n${this.active}`);
    this.drawAbout();
  }

  drawAbout() {
    const n = this.model.nodes[this.active];
    const { title, has_r } = this.data.method;
    const cost = n.can ? `${title}${has_r ? ` r=${this.rank(n)}` : ""}: ${number(this.model.cost(n, this.data))} parameters` : this.why(n);
    const facts = [n.klass, n.shape.length && `weight ${times(n.shape)}`, `${number(n.size)} parameters`, cost];
    this.$(".about").innerHTML = `<b>${escape(n.path || "whole network")}</b> · ${escape(facts.filter(Boolean).join(" · "))}${
      n.old ? `<span class="once"> · formerly ${escape(n.old)}</span>` : ""}`;
  }

  // Keeps rows that did not change, and the row whose rank is being typed, so that it keeps the caret.
  drawRows(wanted) {
    const { activeElement } = this.root.getRootNode();
    const old = new Map([...this.rows.children].map((row) => [row.id, row]));
    const rows = wanted.map(({ id, html }) => {
      const before = old.get(id);
      if (before?.html === html) return before;
      const row = elementOf(html);
      if (!before?.contains(activeElement) || !row.querySelector(".rank")) return Object.assign(row, { html });
      for (const { name, value } of row.attributes) before.setAttribute(name, value);
      return Object.assign(before, { html });
    });
    const { bad } = this.model;
    const none = bad ? `This is not a regular expression: ${bad[0].toLowerCase()}${bad.slice(1)}.` : "Nothing matches this search.";
    const kept = new Set(rows.length ? rows : [elementOf(`<div class="none">${escape(none)}</div>`)]);
    for (const row of [...this.rows.children]) if (!kept.has(row)) row.remove();
    [...kept].forEach((row, k) => { if (this.rows.children[k] !== row) this.rows.insertBefore(row, this.rows.children[k]); });
    if (activeElement?.matches(".rank") && !activeElement.isConnected) this.scroll.focus({ preventScroll: true });
  }

  row(i, line) {
    const { nodes, able, on, ticked, groups, facts } = this.model;
    const n = nodes[i];
    const siblings = n.parent < 0 ? [i] : nodes[n.parent].kids;
    const full = able[i] ? on[i] === able[i] : i === facts.head_layer && this.data.head === "lora";
    const checked = full ? "true" : on[i] ? "mixed" : "false";
    const alike = able[i] ? groups.get(n.like).length : 0;
    const why = this.why(n);
    const note = n.head && !nodes[n.parent].head ? HEAD[this.data.head] : n.kids.length && able[i] ? `${on[i]}/${able[i]}` : "";
    const own = n.can && ticked[i] && this.rank(n) !== this.data.r;
    const label = [n.path || "whole network", n.klass, times(n.shape), own && `rank ${this.rank(n)}`, why].filter(Boolean).join(", ");
    const under = [n.klass, times(n.shape), n.size && number(n.size)].filter(Boolean).join(" · ");
    return `
      <div class="row${n.can && ticked[i] ? " ticked" : ""}${i === this.active ? " active" : ""}" style="top:${line * this.rowHeight}px;--depth:${n.depth}"
        id="n${i}" data-i="${i}" role="treeitem" aria-label="${escape(label)}" aria-level="${n.depth + 1}" aria-setsize="${siblings.length}"
        aria-posinset="${siblings.indexOf(i) + 1}" aria-checked="${checked}" ${able[i] ? "" : 'aria-disabled="true"'}
        ${n.kids.length ? `aria-expanded="${this.model.isOpen(i)}"` : ""} ${why ? `title="${escape(why)}"` : ""}>
        <span class="name">
          <span class="twist">${n.kids.length ? TWIST : ""}</span>
          <span class="box">${{ true: CHECK, mixed: DASH, false: "" }[checked]}</span>
          <span class="text"><span class="segment">${i ? this.marked(n.segment) : "whole network"}</span><span class="under">${escape(under)}</span></span>
          <span class="note">${note}</span>
          ${alike > 1 ? `<button type="button" class="alike" tabindex="-1" aria-label="Tick all ${alike} like ${escape(n.path)}"
            title="Tick all like this: the same in every layer">all ${alike}</button>` : ""}
        </span>
        <span class="klass">${escape(n.klass)}</span>
        <span class="shape">${times(n.shape)}</span>
        <span class="size">${n.size ? number(n.size) : ""}</span>
        <span class="ranks">${n.can && ticked[i] && this.data.method.ranks ? this.rankField(n) : ""}</span>
        <span class="role">${n.role ? `<span class="badge ${n.role.split(".")[0]}">${n.role.replace(".", " ")}</span>` : ""}</span>
      </div>`;
  }

  rank(n) {
    return this.model.rank(n, this.data);
  }

  rankField(n) {
    const rank = this.rank(n);
    return `<input class="rank${rank === this.data.r ? "" : " own"}" value="${rank}" role="spinbutton" inputmode="numeric" autocomplete="off" tabindex="-1"
      aria-label="Rank of ${escape(n.path)}" aria-valuenow="${rank}" aria-valuemin="1" aria-valuemax="${highest(n.shape)}" aria-invalid="${rank > highest(n.shape)}"
      title="Rank of this module, 1 to ${highest(n.shape)}. Leave empty for the general rank. 'All like this' copies it to the same module in every layer.">`;
  }

  marked(segment) {
    const words = this.model.hits ? this.input.value.toLowerCase().split(/[\s./]+/).filter(Boolean) : [];
    const word = words.find((w) => segment.toLowerCase().includes(w));
    if (!word) return escape(segment);
    const at = segment.toLowerCase().indexOf(word);
    const [before, hit, after] = [segment.slice(0, at), segment.slice(at, at + word.length), segment.slice(at + word.length)].map(escape);
    return `${before}<mark>${hit}</mark>${after}`;
  }

  why(n) {
    if (n.head) return `The head is ${HEAD[this.data.head]}: set by the head policy, not by ticks.`;
    if (this.model.able[n.i]) return "";
    return n.why === "none" ? "Nothing here can be adapted." : n.why;
  }

  // ---- input

  act(what) {
    const { model, active } = this;
    const node = model.nodes[active];
    const ticks = {
      "tick-matches": () => model.tick(model.matches(), true),
      "untick-matches": () => model.tick(model.matches(), false),
      "clear": () => model.tick(model.nodes, false),
      "toggle": () => model.toggle(active),
      "toggle-alike": () => model.tickAlike(active),
      "tick-alike": () => model.tickAlike(active, true),
      "untick-alike": () => model.tickAlike(active, false),
      "tick-below": () => model.tick(model.within(active), true),
    };
    const others = {
      "expand-all": () => model.setAllOpen(true),
      "collapse-all": () => model.setAllOpen(false),
      "fold": () => model.setOpen(active, !model.isOpen(active)),
      "rank": () => this.$(`#n${active} .rank`)?.select(),
      "unfold-siblings": () => (model.nodes[node.parent]?.kids ?? [active]).forEach((i) => model.setOpen(i, true)),
      "wipe": () => { this.search(""); this.input.focus(); },
      "find": () => this.search(node.segment),
      "copy": () => navigator.clipboard.writeText(node.path),
    };
    if (what in ticks && ticks[what]()) this.changed();
    if (what in others) { others[what](); this.refresh(); }
  }

  search(text = this.input.value) {
    this.input.value = text;
    this.model.find(text.trim());
    if (this.model.hits?.size) this.active = Math.min(...this.model.hits);
    this.refresh();
    this.activate(this.active);
  }

  activate(i) {
    if (i === undefined) return;
    this.active = i;
    const top = this.lines.indexOf(i) * this.rowHeight;
    const { scrollTop, clientHeight } = this.scroll;
    if (top < scrollTop) this.scroll.scrollTop = top;
    else if (top + this.rowHeight > scrollTop + clientHeight) this.scroll.scrollTop = top + this.rowHeight - clientHeight;
    this.draw();
  }

  activateAt(target) {
    const row = target.closest(".row");
    if (row) this.activate(Number(row.dataset.i));
    return row;
  }

  click(event) {
    const { target } = event;
    const hit = [".rank", ".alike", ".box", ".twist"].find((part) => target.closest(part)); // before the row is redrawn
    if (!this.activateAt(target) || hit === ".rank") return;
    const { kids, can } = this.model.nodes[this.active];
    if (hit === ".alike") this.act("toggle-alike");
    else if (hit === ".box" || (can && !kids.length)) this.act("toggle");
    else if (kids.length) this.act("fold");
    this.scroll.focus({ preventScroll: true });
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const { model, lines } = this;
    const node = model.nodes[this.active];
    const at = lines.indexOf(this.active);
    const page = Math.max(1, Math.floor(this.scroll.clientHeight / this.rowHeight) - 1);
    const go = (line) => this.activate(lines[Math.max(0, Math.min(lines.length - 1, line))]);
    const open = model.isOpen(this.active);
    const keys = {
      "ArrowDown": () => go(at + 1), "ArrowUp": () => go(at - 1), "PageDown": () => go(at + page), "PageUp": () => go(at - page),
      "Home": () => go(0), "End": () => go(lines.length - 1),
      "ArrowRight": () => (open ? go(at + 1) : this.act("fold")),
      "ArrowLeft": () => (open ? this.act("fold") : this.activate(model.nodes[node.parent]?.i)),
      " ": () => this.act(event.shiftKey ? "toggle-alike" : "toggle"),
      "Enter": () => this.act(node.kids.length ? "fold" : "toggle"),
      "*": () => this.act("unfold-siblings"),
      "F2": () => this.act("rank"),
      "/": () => this.input.focus(),
      "ContextMenu": () => this.openMenu(),
      "F10": () => event.shiftKey && this.openMenu(),
    };
    const does = keys[event.key] ?? (event.key.length === 1 && (() => this.typeAhead(event.key.toLowerCase(), at)));
    if (!does) return;
    event.preventDefault();
    if (event.key.length > 1) this.typed.text = "";
    does();
  }

  // ---- the rank of one module: applied while it is typed if it is valid; otherwise a message says so

  typeRank(input) {
    const node = this.nodeOf(input);
    const text = input.value.trim();
    const rank = Number(text);
    const fits = text === "" || (/^\d+$/.test(text) && rank >= 1 && rank <= highest(node.shape));
    input.ariaInvalid = !fits;
    if (!fits) { // the digits before, 99 of 999, were no wish either
      this.model.setRank(node, input.defaultValue === String(this.data.r) ? 0 : Number(input.defaultValue));
      this.changed();
      this.$(".about").textContent = `${text} is not a valid rank for ${node.path}. Enter 1 to ${highest(node.shape)}.`;
      return;
    }
    this.model.setRank(node, rank === this.data.r ? 0 : rank);
    input.ariaValueNow = this.rank(node);
    input.classList.toggle("own", this.rank(node) !== this.data.r);
    this.changed();
  }

  endRank(input) { // the field shows the rank in use again
    const node = this.nodeOf(input);
    input.value = input.defaultValue = this.rank(node);
    input.ariaInvalid = this.rank(node) > highest(node.shape);
    this.drawAbout();
  }

  rankKey(event) {
    const input = event.target;
    const node = this.nodeOf(input);
    const step = { ArrowUp: 1, ArrowDown: -1 }[event.key];
    if (step) input.value = Math.max(1, Math.min(this.rank(node) + step, highest(node.shape)));
    else if (event.key === "Escape") input.value = input.defaultValue;
    else if (event.key !== "Enter") return;
    event.preventDefault();
    this.typeRank(input);
    if (!step) this.scroll.focus({ preventScroll: true });
  }

  nodeOf(element) {
    return this.model.nodes[element.closest(".row").dataset.i];
  }

  typeAhead(letter, at) {
    const now = performance.now();
    const text = (now - this.typed.at < TYPED_TOGETHER_MS ? this.typed.text : "") + letter;
    this.typed = { text, at: now };
    const start = text.length > 1 ? at : at + 1;
    const round = [...this.lines.slice(start), ...this.lines.slice(0, start)];
    this.activate(round.find((i) => this.model.nodes[i].segment.toLowerCase().startsWith(text)));
  }

  inputKey(event) {
    if (event.key === "Escape") this.act("wipe");
    else if (event.key === "Enter") this.act("tick-matches");
    else if (event.key === "ArrowDown") { event.preventDefault(); this.scroll.focus(); }
  }

  openMenu(x, y) {
    const { model, active } = this;
    const able = model.able[active] > 0;
    const alike = able ? model.groups.get(model.nodes[active].like).length : 0;
    const items = [
      ["tick-alike", `Tick all ${alike || ""} like this`, able], ["untick-alike", `Untick all ${alike || ""} like this`, able],
      ["tick-below", "Tick everything below", able && model.nodes[active].kids.length],
      ["rank", "Change the rank", this.$(`#n${active} .rank`)],
      ["find", "Search for this name", active], ["copy", "Copy the path", active && navigator.clipboard],
    ];
    this.menu.innerHTML = items.map(([what, label, can]) =>
      `<button type="button" role="menuitem" data-act="${what}" ${can ? "" : "disabled"}>${label}</button>`).join("");
    this.menu.hidden = false;
    const box = this.root.getBoundingClientRect();
    const row = this.$(`#n${active}`).getBoundingClientRect();
    const place = (at, room, size) => `${Math.max(4, Math.min(at, room - size - 4))}px`;
    this.menu.style.left = place((x ?? row.left + 48) - box.left, box.width, this.menu.offsetWidth);
    this.menu.style.top = place((y ?? row.bottom) - box.top, box.height, this.menu.offsetHeight);
    this.menu.querySelector("button:enabled")?.focus();
  }

  closeMenu() {
    this.menu.hidden = true;
    this.scroll.focus();
  }

  menuKey(event) {
    const items = [...this.menu.querySelectorAll("button:enabled")];
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    const at = items.indexOf(this.root.getRootNode().activeElement);
    if (step) items[(at + step + items.length) % items.length].focus();
    else if (event.key === "Escape" || event.key === "Tab") this.closeMenu();
    else return;
    event.preventDefault();
  }
}
