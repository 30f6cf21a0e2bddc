// Ticks, search and counts, without the page: grid.js and view.js draw them. The three files are sent as one script.

const columns = (shape) => shape.slice(1).reduce((a, b) => a * b, 1);
const width = (shape) => shape[0] + columns(shape);
const PARTS = ["query", "key", "value", "qkv", "in", "out"]; // of a role, in the order of the columns
const highest = (shape) => Math.min(shape[0], columns(shape)); // the highest rank that an update of this weight can have

// Trainable parameters on a weight: the formulas of sousa_engine.core.methods, repeated here so that the counts follow each tick and rank at once.
const lowRank = (shape, r) => r * width(shape);
const COSTS = {
  dora: (shape, r) => lowRank(shape, r) + shape[0],
  adalora: (shape, r) => lowRank(shape, Math.ceil(1.5 * r)) + Math.ceil(1.5 * r),
  ia3: (shape) => shape[0],
  lokr: (shape, r) => {
    const [[out1, out2], [in1, in2]] = [factors(shape[0]), factors(shape[1])];
    const kernel = shape.slice(2).reduce((a, b) => a * b, 1);
    return out1 * in1 + (r >= Math.max(out2, in2) / 2 ? out2 * in2 * kernel : r * (out2 + in2 * kernel));
  },
};

function factors(size) { // the two nearest to its square root, the smaller first
  let small = Math.floor(Math.sqrt(size));
  while (size % small) small--;
  return [small, size / small];
}

class Model {
  constructor(data) {
    this.name = data.outline;
    this.facts = data.facts;
    this.nodes = [];
    for (const [parent, segment, klass, shape, size, role, never, old, layer] of data.rows) {
      const above = this.nodes[parent];
      const path = above?.path ? `${above.path}.${segment}` : segment;
      const mask = path.replace(/(?<![^.])\d+(?![^.])/g, "#"); // the same module in every layer
      const node = { i: this.nodes.length, parent, segment, path, shape, size, role, never, old, layer, kids: [],
        klass: data.classes[klass], head: never === "head", depth: above ? above.depth + 1 : 0, like: `${mask}|${klass}|${role}` };
      above?.kids.push(node.i);
      this.nodes.push(node);
    }
    for (const node of [...this.nodes].reverse()) node.end = node.kids.length ? this.nodes[node.kids.at(-1)].end : node.i + 1;
    this.groups = Map.groupBy(this.nodes, (node) => node.like);
    this.byPath = new Map(this.nodes.map((node) => [node.path, node]));
    this.ticked = new Uint8Array(this.nodes.length); // blocked modules keep their tick, but it does not count
    this.ranks = new Int32Array(this.nodes.length); // 0: the general rank
    this.open = new Uint8Array(this.nodes.length);
    for (const node of this.nodes) { // at first, only the first layer of every stack is open
      const inFirst = node.path.split(".").every((part) => !/^\d+$/.test(part) || part === "0");
      this.open[node.i] = node.kids.length && inFirst && node.depth < 6 ? 1 : 0;
    }
    this.block({});
    this.find("");
  }

  // node.why: why it cannot be ticked (ever, or now), "" if it can. blocked: reason -> rows.
  block(blocked) {
    for (const node of this.nodes) node.why = node.never;
    for (const [why, rows] of Object.entries(blocked)) for (const i of rows) this.nodes[i].why ||= why;
    for (const node of this.nodes) node.can = node.why === "";
  }

  // ---- ticks and ranks

  seed(paths, ranks) {
    this.ticked.fill(0);
    this.ranks.fill(0);
    for (const node of paths.map((path) => this.byPath.get(path)).filter((node) => node?.never === "")) {
      this.ticked[node.i] = 1;
      this.setRank(node, ranks[node.path] ?? 0);
    }
  }

  get choice() {
    const ticked = this.nodes.filter((node) => this.ticked[node.i]);
    const ranked = ticked.filter((node) => this.ranks[node.i]);
    return { paths: ticked.map((node) => node.path), ranks: Object.fromEntries(ranked.map((node) => [node.path, this.ranks[node.i]])) };
  }

  isTicked(node) {
    return node.can && this.ticked[node.i] === 1;
  }

  setRank(node, rank) {
    this.ranks[node.i] = Math.min(rank, highest(node.shape));
  }

  within(i) {
    return this.nodes.slice(i, this.nodes[i].end);
  }

  // Ticks everything below the modules like row i, and copies the ranks below row i to their counterparts.
  // Without `on`: unless they match already.
  tickAlike(i, on) {
    const group = this.groups.get(this.nodes[i].like);
    const twins = this.within(i).filter((node) => this.isTicked(node))
      .map((node) => ({ rank: this.ranks[node.i], all: this.groups.get(node.like) }))
      .filter(({ all }) => all.length === group.length); // otherwise several lie below row i, and none can be the model
    on ??= twins.some(({ rank, all }) => all.some((node) => this.ranks[node.i] !== Math.min(rank, highest(node.shape)))) || undefined;
    const able = this.tick(group.flatMap((node) => this.within(node.i)), on);
    for (const { rank, all } of twins) for (const node of all) if (this.isTicked(node)) this.setRank(node, rank);
    return able;
  }

  matches() {
    return this.hits ? this.nodes.filter((node) => this.hits.has(node.i)) : [];
  }

  // Without `on`: tick, unless all are ticked already. Returns whether any of them can be ticked.
  tick(nodes, on) {
    const able = nodes.filter((node) => node.can);
    on ??= able.some((node) => !this.ticked[node.i]);
    for (const node of able) {
      this.ticked[node.i] = on ? 1 : 0;
      if (!on) this.ranks[node.i] = 0;
    }
    return able.length > 0;
  }

  // A folder ticks only what is visible: during a search, the matches.
  toggle(i) {
    return this.tick(this.within(i).filter((node) => !this.hits || this.hits.has(node.i)));
  }

  // able[i], on[i]: how many modules below row i can be ticked, and how many are.
  tally() {
    [this.able, this.on] = [new Int32Array(this.nodes.length), new Int32Array(this.nodes.length)];
    for (let i = this.nodes.length - 1; i >= 0; i--) {
      const { can, parent } = this.nodes[i];
      if (can) { this.able[i]++; this.on[i] += this.ticked[i]; }
      if (parent >= 0) { this.able[parent] += this.able[i]; this.on[parent] += this.on[i]; }
    }
  }

  rank(node, { r, method }) {
    return (method.ranks && this.ranks[node.i]) || r;
  }

  cost(node, data) {
    return (COSTS[data.method.name] ?? lowRank)(node.shape, this.rank(node, data));
  }

  // The sums of sousa_engine.targets.count, repeated here so that they follow each tick at once.
  count(data) {
    const { facts } = this;
    const { r, head, num_classes } = data;
    const chosen = this.nodes.filter((node) => this.isTicked(node));
    const adapters = chosen.reduce((sum, node) => sum + this.cost(node, data), 0);
    const more = num_classes - facts.num_classes;
    const shape = [num_classes, ...this.nodes[facts.head_layer].shape.slice(1)];
    const lora = (COSTS[data.method.name] ?? lowRank)(shape, r);
    const policy = { train: facts.head_parameters + more * facts.per_class, lora, freeze: 0 };
    const trainable = adapters + policy[head];
    const total = facts.total + more * facts.per_class;
    return { layers: chosen.length + (head === "lora"), adapters, head: policy[head], trainable, total, percent: (100 * trainable) / total };
  }

  // ---- the grid: layers (first the modules outside them) by roles in groups. The head is left out: its policy decides.

  sheet() {
    const members = this.nodes.filter((node) => !node.head && node.never !== "none");
    const layers = [...Map.groupBy(members, (node) => node.layer)].map(([layer, nodes]) => ({ name: this.layerName(layer), layer, nodes }));
    const roles = [...Map.groupBy(members, (node) => node.role || "other")].map(([role, nodes]) => {
      const [group, part = ""] = role.split(".");
      return { group, part, nodes: new Set(nodes) };
    }).sort((a, b) => PARTS.indexOf(a.part) - PARTS.indexOf(b.part));
    const groups = [...Map.groupBy(roles, (role) => role.group)].map(([name, roles]) => {
      const nodes = roles.flatMap((role) => [...role.nodes]);
      return { name, roles, nodes, first: Math.min(...nodes.map((node) => node.i)), never: nodes.every((node) => node.never) };
    });
    layers.sort((a, b) => (b.layer === null) - (a.layer === null));
    groups.sort((a, b) => a.never - b.never || a.first - b.first); // roles that can never be ticked come last
    return { layers, groups };
  }

  layerName(layer) { // the end of its path, starting with the name before the first number
    if (layer === null) return "outside";
    const { path } = this.nodes.find((node) => node.layer === layer);
    return /[^.]+\.\d+(\..*)?$/.exec(path)?.[0] ?? path;
  }

  // ---- search, by the rule of sousa_engine.targets.match.grep. bad: what is wrong with a regular expression, or "".

  find(text) {
    this.bad = "";
    let test;
    try {
      test = matcher(text, this.roleWords ??= new Set(this.nodes.flatMap((node) => node.role.split("."))));
    } catch (error) {
      this.bad = error.message.split(": ").at(-1);
    }
    this.hits = text && test ? new Set(this.nodes.filter((node) => node.i && test(node)).map((node) => node.i)) : null;
    this.shown = new Set();
    this.shut = new Set();
    for (let i of this.hits ?? []) for (; i >= 0 && !this.shown.has(i); i = this.nodes[i].parent) this.shown.add(i);
  }

  // ---- the rows

  isOpen(i) {
    return this.nodes[i].kids.length > 0 && (this.hits ? !this.shut.has(i) : this.open[i] === 1);
  }

  setOpen(i, open) {
    if (!this.hits) this.open[i] = open ? 1 : 0;
    else if (open) this.shut.delete(i);
    else this.shut.add(i);
  }

  setAllOpen(open) {
    for (const node of this.nodes) this.setOpen(node.i, open || node.i === 0);
  }

  lines() {
    const lines = [];
    const walk = (i) => {
      lines.push(i);
      if (this.isOpen(i)) for (const kid of this.nodes[i].kids) if (!this.hits || this.shown.has(kid)) walk(kid);
    };
    if (!this.bad && (!this.hits || this.hits.size)) walk(0);
    return lines;
  }
}

const inWords = (name) => name.replace(/([a-z])(?=[A-Z])/g, "$1 ").toLowerCase().match(/[a-z]+/g) ?? [];

function matcher(text, roleWords) { // throws an error that says why a regular expression is none
  const namesOf = (node) => [node.path, node.klass, node.role, node.old];
  if (text.startsWith("/") || /[\\^$*+?()[\]{}|]/.test(text)) { // no name contains these letters
    if (text.startsWith("/") && (text.length < 2 || !text.endsWith("/"))) throw new Error("the closing / is missing");
    const pattern = new RegExp(text.startsWith("/") ? text.slice(1, -1) : text, "i");
    return (node) => namesOf(node).some((name) => name && pattern.test(name));
  }
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  return (node) => {
    const names = namesOf(node).filter(Boolean);
    const written = names.join("\n").toLowerCase();
    const whole = new Set(names.flatMap(inWords));
    return words.every((word) => (roleWords.has(word) ? whole.has(word) : written.includes(word)));
  };
}
