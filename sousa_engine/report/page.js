/* Draws the charts in the light or dark theme, and again when the theme changes; prints use the light theme. */
const figures = JSON.parse(document.getElementById("figures").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");
const narrow = matchMedia("(max-width: 640px)");
const PAPER_PX = 680;
let printing = false;

function draw() {
  const style = getComputedStyle(document.documentElement);
  const color = (name) => style.getPropertyValue(name).trim();
  const light = { "--ink": "#1d282c", "--panel": "#f4f1ea", "--line": "#e2ddd1" };
  const [ink, panel, line] = Object.keys(light).map((name) => (printing ? light[name] : color(name)));
  return Promise.all([...document.querySelectorAll("[data-chart]")].map((place) => {
    const { data, layout } = structuredClone(figures[place.dataset.chart]);
    layout.font = { color: ink, family: getComputedStyle(document.body).fontFamily, size: 13 };
    layout.hoverlabel = { ...layout.hoverlabel, bgcolor: panel, bordercolor: line, font: { color: ink } };
    for (const axis of [layout.xaxis, layout.yaxis]) if (axis?.title) axis.title.font = { size: 13 };
    if (printing) layout.width = PAPER_PX;
    else layout.autosize = true;
    if (narrow.matches) {  // names next to points would overlap
      for (const trace of data) if (trace.mode) trace.mode = trace.mode.replace("+text", "");
    }
    return Plotly.react(place, data, layout, { responsive: true, displaylogo: false, displayModeBar: false });
  }));
}

for (const query of [dark, narrow]) query.addEventListener("change", draw);
addEventListener("beforeprint", () => { printing = true; draw(); });
addEventListener("afterprint", () => { printing = false; draw(); });
draw().then(() => { document.documentElement.dataset.drawn = "yes"; });
