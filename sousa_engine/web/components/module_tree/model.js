// What is ticked, found and counted; knows nothing of the page. view.js draws it; both travel as one script.

const width = (shape) => shape[0] + shape.slice(1).reduce((a, b) => a * b, 1);

class Model {
  constructor(data) {
    this.name = data.outline;
    this.facts = data.facts;
    this.nodes = [];
    for (const [parent, segment, klass, shape, size, role, why, old] of data.rows) {
      const above = this.nodes[parent];
      const path = above?.path ? `${above.path}.${segment}` : segment;
      const mask = path.replace(/(?<![^.])\d+(?![^.])/g, "#"); // the same module in every layer
      const node = { i: this.nodes.length, parent, segment, path, shape, size, role, why, old, kids: [], can: why === "",
        klass: data.classes[klass], head: why === "head", depth: above ? above.depth + 1 : 0, like: `${mask}|${klass}|${role}` };
      above?.kids.push(node.i);
      this.nodes.push(node);
    }
    for (const node of [...this.nodes].reverse()) node.end = node.kids.length ? this.nodes[node.kids.at(-1)].end : node.i + 1;
    this.groups = Map.groupBy(this.nodes, (node) => node.like);
    this.byPath = new Map(this.nodes.map((node) => [node.path, node]));
    this.ticked = new Uint8Array(this.nodes.length);
    this.open = new Uint8Array(this.nodes.length);
    for (const node of this.nodes) { // to begin with, of every stack of layers only the first is open
      const inFirst = node.path.split(".").every((part) => !/^\d+$/.test(part) || part === "0");
      this.open[node.i] = node.kids.length && inFirst && node.depth < 6 ? 1 : 0;
    }
    this.find("");
  }

  // ---- ticks

  seed(paths) {
    this.ticked.fill(0);
    for (const path of paths) if (this.byPath.get(path)?.can) this.ticked[this.byPath.get(path).i] = 1;
  }

  get paths() {
    return this.nodes.filter((node) => this.ticked[node.i]).map((node) => node.path);
  }

  within(i) {
    return this.nodes.slice(i, this.nodes[i].end);
  }

  alike(i) { // all that lies below the modules like this one
    return this.groups.get(this.nodes[i].like).flatMap((node) => this.within(node.i));
  }

  matches() {
    return this.hits ? this.nodes.filter((node) => this.hits.has(node.i)) : [];
  }

  // Without `on`: tick, unless all of them are ticked. Answers whether anything could be ticked.
  tick(nodes, on) {
    const able = nodes.filter((node) => node.can);
    on ??= able.some((node) => !this.ticked[node.i]);
    for (const node of able) this.ticked[node.i] = on ? 1 : 0;
    return able.length > 0;
  }

  // A folder ticks what one sees of it: under a search, the matches.
  toggle(i) {
    return this.tick(this.within(i).filter((node) => !this.hits || this.hits.has(node.i)));
  }

  // able[i], on[i]: modules below row i that can be ticked, and that are.
  tally() {
    [this.able, this.on] = [new Int32Array(this.nodes.length), new Int32Array(this.nodes.length)];
    for (let i = this.nodes.length - 1; i >= 0; i--) {
      const { can, parent } = this.nodes[i];
      if (can) { this.able[i]++; this.on[i] += this.ticked[i]; }
      if (parent >= 0) { this.able[parent] += this.able[i]; this.on[parent] += this.on[i]; }
    }
  }

  // The sums of sousa_engine.module_tree.count, made here so that they move with the tick.
  count({ r, head, num_classes }) {
    const { facts } = this;
    const chosen = this.nodes.filter((node) => this.ticked[node.i]);
    const adapters = chosen.reduce((sum, node) => sum + r * width(node.shape), 0);
    const more = num_classes - facts.num_classes;
    const policy = { train: facts.head_parameters + more * facts.per_class, lora: r * (facts.head_width + more), freeze: 0 };
    const trainable = adapters + policy[head];
    const total = facts.total + more * facts.per_class;
    return { layers: chosen.length + (head === "lora"), adapters, head: policy[head], trainable, total, percent: (100 * trainable) / total };
  }

  // ---- search: words that all occur in path, class, role or old name; or /regex/. Answers false for a bad regex.

  find(text) {
    const test = matcher(text);
    this.hits = text && test ? new Set(this.nodes.filter((node) => node.i && test(node)).map((node) => node.i)) : null;
    this.shown = new Set();
    this.shut = new Set();
    for (let i of this.hits ?? []) for (; i >= 0 && !this.shown.has(i); i = this.nodes[i].parent) this.shown.add(i);
    return Boolean(test);
  }

  // ---- which rows there are

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
    if (!this.hits || this.hits.size) walk(0);
    return lines;
  }
}

function matcher(text) {
  const regex = /^\/(.+)\/$/.exec(text);
  if (regex) {
    try {
      const pattern = new RegExp(regex[1], "i");
      return (node) => [node.path, node.klass, node.role, node.old].some((name) => name && pattern.test(name));
    } catch {
      return null;
    }
  }
  const words = text.toLowerCase().split(/\s+/);
  return (node) => {
    const names = `${node.path}\n${node.klass}\n${node.role}\n${node.old}`.toLowerCase();
    return words.every((word) => names.includes(word));
  };
}
