// The grid above the tree: each cell (a role in a layer), row, column and group of columns is a button that ticks all its
// modules. One stop for the Tab key; arrows move, Space ticks.

class Grid {
  constructor(box, ticked) {
    [this.table, this.note] = [box.querySelector("table"), box.querySelector(".told")];
    this.ticked = ticked;
    this.table.onclick = (e) => this.click(this.buttonAt(e.target));
    this.table.onpointerover = (e) => this.tell(this.buttonAt(e.target));
    this.table.addEventListener("focusin", (e) => this.focused(this.buttonAt(e.target)));
    this.table.onkeydown = (e) => this.key(e);
  }

  // Builds the table for a new outline.
  build(model) {
    this.model = model;
    this.buttons = [];
    this.at = []; // at[row][column]: the button there; a heading covers all cells that it spans
    const { layers, groups } = model.sheet();
    const deep = groups.some((group) => group.roles.length > 1) ? 2 : 1;
    const head = [`<th rowspan="${deep}" class="corner">Layer</th>`, ""];
    const columns = [];
    for (const { name, roles, nodes } of groups) {
      const column = columns.length + 1;
      const one = roles.length === 1 && `${name} ${roles[0].part}`.trim();
      head[0] += this.heading([0, one ? deep : 1], [column, roles.length], one || name, `All ${one || name}`, nodes);
      for (const role of roles) {
        columns.push(role);
        if (!one) head[1] += this.heading([1, 1], [columns.length, 1], role.part, `All ${name} ${role.part}`, [...role.nodes]);
      }
    }
    const body = layers.map(({ name, nodes }, i) => `<tr>${this.heading([deep + i, 1], [0, 1], name, `All of ${name}`, nodes)}${
      columns.map((role, j) => {
        const here = nodes.filter((node) => role.nodes.has(node));
        const label = `${name}, ${role.group} ${role.part}`.trim();
        return `<td>${here.length ? this.button([deep + i, 1], [j + 1, 1], "", label, here) : ""}</td>`;
      }).join("")}</tr>`);
    this.table.innerHTML = `<thead><tr>${head[0]}</tr>${deep > 1 ? `<tr>${head[1]}</tr>` : ""}</thead><tbody>${body.join("")}</tbody>`;
    for (const element of this.table.querySelectorAll("button")) this.buttons[element.dataset.k].element = element;
    this.told = this.stop = undefined;
    this.draw();
    this.stopAt(this.buttons[0]);
  }

  heading([row, rows], [column, columns], text, label, nodes) {
    const button = this.button([row, rows], [column, columns], text, label, nodes);
    return `<th scope="${column ? "col" : "row"}" rowspan="${rows}" colspan="${columns}">${button}</th>`;
  }

  button([row, rows], [column, columns], text, label, nodes) {
    const k = this.buttons.push({ row, column, label, nodes }) - 1;
    for (let i = row; i < row + rows; i++) for (let j = column; j < column + columns; j++) (this.at[i] ??= [])[j] = k;
    return `<button type="button" role="checkbox" tabindex="-1" data-k="${k}"><i class="mark"></i>${escape(text)}</button>`;
  }

  // Shows what is ticked now. It runs after every tick, so it writes only what changed.
  draw() {
    for (const button of this.buttons) {
      const able = button.nodes.filter((node) => node.can);
      const on = able.filter((node) => this.model.isTicked(node)).length;
      const reasons = [...new Set(button.nodes.map((node) => node.why).filter(Boolean))].join(" ");
      const state = [able.length, on, reasons].join();
      if (state === button.state) continue;
      Object.assign(button, { state, able: able.length, on, reasons });
      const checked = on && on === able.length ? "true" : on ? "mixed" : "false";
      const { element, label } = button;
      element.ariaChecked = checked;
      element.ariaDisabled = able.length ? null : "true";
      element.ariaLabel = able.length ? label : `${label}. ${reasons}`;
      element.title = this.words(button).join(" · ");
      element.firstChild.innerHTML = { true: CHECK, mixed: DASH, false: "" }[checked];
    }
    this.tell();
  }

  // A button in words: its name, how many of its modules are ticked, why the others cannot be.
  words({ label, nodes, able, on, reasons }) {
    const rest = nodes.length - able;
    if (!able) return [label, reasons];
    return [label, nodes.length > 1 ? `${on} of ${able} ticked` : nodes[0].path, ...(rest ? [`${rest} more cannot be ticked: ${reasons}`] : [])];
  }

  tell(button = this.told) {
    this.told = button;
    const [name, ...more] = button ? this.words(button) : ["", "Tick a cell, a row or a complete column."];
    this.note.innerHTML = `<b>${escape(name)}</b> ${escape(more.join(" · "))}`;
  }

  // ---- input

  buttonAt(target) {
    return this.buttons[target.closest("button")?.dataset.k];
  }

  click(button) {
    if (!button) return;
    if (this.model.tick(button.nodes)) this.ticked();
    this.tell(button);
  }

  focused(button) {
    if (!button) return;
    this.stopAt(button);
    this.tell(button);
  }

  stopAt(button) { // the one that Tab comes back to
    if (this.stop) this.stop.element.tabIndex = -1;
    this.stop = button;
    button.element.tabIndex = 0;
    const { row, column } = this.place ?? {};
    if (this.buttons[this.at[row]?.[column]] !== button) this.place = { row: button.row, column: button.column };
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const { row, column } = this.place;
    const across = Array.from(this.at[row], (k, column) => ({ k, row, column }));
    const down = this.at.map((line, row) => ({ k: line[column], row, column }));
    const way = {
      ArrowRight: across.slice(column + 1), ArrowLeft: across.slice(0, column).reverse(),
      ArrowDown: down.slice(row + 1), ArrowUp: down.slice(0, row).reverse(),
      Home: across.slice(0, column), End: across.slice(column + 1).reverse(),
    }[event.key];
    if (!way) return;
    event.preventDefault();
    const to = way.find(({ k }) => k !== undefined && k !== this.at[row][column]);
    if (!to) return;
    this.place = to;
    this.buttons[to.k].element.focus();
  }
}
