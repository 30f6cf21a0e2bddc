// Live curves of one run or several: polls the studio's JSON about once a second and feeds uPlot.
// Streamlit calls the default export again whenever its data or the theme changes. Each mount keeps one View,
// so the charts, the zoom and the toggles are preserved.

const LIBRARY = "assets/live_chart/uPlot.iife.min.js?v=1.6.32"
const POLL_MS = 1000
const SLOWEST_RETRY_MS = 10000
const HIDDEN_POLL_MS = 10000 // in a tab behind others, only to name it
const HEIGHT = 250
const views = new WeakMap()
let library

export default function ({ data, parentElement, setTriggerValue }) {
  let view = views.get(parentElement)
  if (!view) views.set(parentElement, (view = new View(parentElement)))
  view.update(data, setTriggerValue)
  return () => {
    views.delete(parentElement)
    view.destroy()
  }
}

const address = path => new URL(path, document.baseURI) // also correct with server.baseUrlPath

function loadLibrary() {
  if (window.uPlot) return Promise.resolve()
  library ??= new Promise((resolve, reject) => {
    const script = document.createElement("script")
    script.src = address(LIBRARY)
    script.onload = resolve
    script.onerror = () => {
      library = undefined
      script.remove()
      reject(new Error("uPlot did not load"))
    }
    document.head.append(script)
  })
  return library
}

class View {
  constructor(parent) {
    this.root = parent.querySelector(".live")
    this.find = selector => this.root.querySelector(selector)
    this.curves = new Map() // "run|metric" -> {width, steps, mean, low, high}: the complete curve
    this.detail = new Map() // the same, only for the zoomed range
    this.answers = new Map() // run id -> the server's last answer about it
    this.hidden = new Set()
    this.zoom = null // [first, last] in steps, kept while points arrive
    this.smoothing = 0
    this.log = false
    this.panels = []
    this.failures = 0
    this.told = {}
    this.resize = new ResizeObserver(() => this.panels.forEach(fit))
    this.onVisible = () => document.hidden || this.poll()
    document.addEventListener("visibilitychange", this.onVisible)
    this.find(".reset").onclick = () => this.setZoom(null)
    this.find(".smooth input").oninput = event => {
      this.smoothing = Number(event.target.value)
      this.find(".smooth output").textContent = event.target.value
      this.draw()
    }
    this.find(".log input").onchange = event => {
      this.log = event.target.checked
      this.build()
    }
  }

  update(data, setTriggerValue) {
    const asked = JSON.stringify([data.runs.map(run => [run.id, run.label]), data.panels])
    const changed = asked !== this.asked
    this.data = data
    this.trigger = setTriggerValue
    this.asked = asked
    const theme = readTheme(this.root)
    if (changed) {
      this.curves.clear()
      this.detail.clear()
      this.answers.clear()
      this.zoom = null
    }
    if (changed || JSON.stringify(theme) !== JSON.stringify(this.theme)) {
      this.theme = theme
      this.build()
    }
    // A finished run was resumed: polling stopped when it ended.
    const woken = data.runs.some(run => (this.answers.get(run.id)?.status ?? run.status) !== run.status)
    if (changed || woken) this.poll()
    else this.draw()
  }

  destroy() {
    this.gone = true
    clearTimeout(this.timer)
    clearTimeout(this.zoomTimer)
    this.resize.disconnect()
    document.removeEventListener("visibilitychange", this.onVisible)
    this.panels.forEach(panel => panel.chart?.destroy())
  }

  // ---- asking the server

  async poll() {
    clearTimeout(this.timer)
    if (this.asking || this.gone || (document.hidden && !this.data.names_tab)) return
    this.asking = true
    const asked = this.asked
    try {
      await loadLibrary()
      const answer = await this.fetch(this.curves)
      this.failures = 0
      this.note("")
      if (asked === this.asked && !this.gone) this.take(answer)
    } catch (error) {
      this.failures += 1
      if (this.failures > 2) this.note(`No answer from the studio (${error.message}). Retrying …`)
    }
    this.asking = false
    if (this.gone) return
    if (asked !== this.asked) return this.poll()
    const settled = !this.failures && this.data.runs.every(run => this.answers.get(run.id)?.over ?? true)
    const retry = Math.min(POLL_MS * 2 ** Math.max(0, this.failures - 1), SLOWEST_RETRY_MS)
    const wait = document.hidden ? HIDDEN_POLL_MS : retry
    if (!settled) this.timer = setTimeout(() => this.poll(), wait)
  }

  async fetch(known, range) {
    const query = new URLSearchParams()
    const metrics = [...new Set(this.data.panels.flatMap(panel => panel.metrics))]
    for (const run of this.data.runs) query.append("run", run.id)
    for (const metric of metrics) query.append("m", metric)
    if (range) {
      query.set("first", range[0])
      query.set("last", range[1])
    } else
      for (const [key, curve] of known) {
        const [run, metric] = key.split("|")
        query.append("since", `${run}/${metric}@${curve.width}:${curve.steps.at(-1)}`)
      }
    const response = await fetch(address(`api/live?${query}`), { cache: "no-store" })
    const answer = await response.json()
    if (!response.ok) throw new Error(answer.error ?? response.status)
    return answer
  }

  take(answer) {
    let news = false
    for (const run of answer.runs) {
      this.answers.set(run.id, { ...run, now_ms: answer.now_ms })
      for (const [metric, part] of Object.entries(run.series)) {
        const key = `${run.id}|${metric}`
        news = merge(this.curves, key, part) || news
      }
    }
    for (const id of answer.missing) this.answers.set(id, { id, over: true, missing: true, series: {} })
    if (!this.panels[0]?.chart) this.build()
    else this.draw()
    if (news && this.zoom && this.zoom[1] >= this.lastStep() - 1) this.askDetail()
    this.showStatus()
    this.nameTab()
    this.tellStatus()
  }

  nameTab() {
    const { tab } = this.answers.get(this.data.runs[0].id)
    if (this.data.names_tab && tab) document.title = tab
  }

  // Rerun the page when a status changes, to show the results or the reason of a failure.
  tellStatus() {
    for (const { id, status } of this.data.runs) {
      const now = this.answers.get(id)?.status
      if (!now || now === status) continue
      const told = this.told[id]
      if (told?.status === now && Date.now() - told.at < 5000) continue
      this.told[id] = { status: now, at: Date.now() }
      this.trigger("status", `${id}:${now}`)
      return
    }
  }

  note(text) {
    const note = this.find(".note")
    note.textContent = text
    note.hidden = !text
  }

  // ---- zoom: kept in the view, read by the x scale of every chart

  setZoom(range) {
    if (range) {
      const middle = (range[0] + range[1]) / 2
      const half = Math.max((range[1] - range[0]) / 2, 1)
      range = [Math.max(middle - half, 0), middle + half]
    }
    this.zoom = range
    this.detail.clear()
    this.find(".reset").hidden = !range
    this.draw()
    if (range) this.askDetail()
  }

  askDetail() {
    if (![...this.curves.values()].some(curve => curve.width > 1)) return // all steps are already loaded
    clearTimeout(this.zoomTimer)
    this.zoomTimer = setTimeout(async () => {
      const zoom = this.zoom
      if (!zoom || this.gone) return
      try {
        const range = [Math.max(1, Math.floor(zoom[0])), Math.ceil(zoom[1])]
        const answer = await this.fetch(null, range)
        if (zoom !== this.zoom) return
        for (const run of answer.runs)
          for (const [metric, part] of Object.entries(run.series)) this.detail.set(`${run.id}|${metric}`, part)
        this.draw()
      } catch {
        // the complete curve stays visible; the next poll reports a missing server
      }
    }, 120)
  }

  lastMeasured(key) {
    const [run, metric] = key.split("|")
    return this.answers.get(run)?.series[metric]?.last // [step, value]
  }

  lastStep() {
    return Math.max(0, ...[...this.curves.values()].map(curve => curve.steps.at(-1)))
  }

  // ---- drawing

  build() {
    for (const panel of this.panels) panel.chart?.destroy()
    this.resize.disconnect()
    const box = this.find(".panels")
    if (this.built !== this.asked) {
      this.built = this.asked
      box.replaceChildren()
      this.panels = this.data.panels.map(panel => ({ ...panel, ...skeleton(panel, box) }))
    }
    this.find(".smooth").hidden = this.data.panels.every(panel => panel.metrics.every(isDotted))
    this.find(".log").hidden = this.data.panels.every(panel => panel.percent)
    this.panels.forEach((panel, index) => {
      panel.parts = parts(this.data.runs, panel, this.theme)
      panel.chart = window.uPlot ? makeChart(this, panel, index) : null
      makeLegend(this, panel)
      this.resize.observe(panel.plot)
    })
    this.showStatus()
    this.draw()
  }

  draw() {
    for (const panel of this.panels) {
      if (!panel.chart) continue
      const tables = panel.parts.map(part => columns(this, panel, part))
      const data = window.uPlot.join(tables)
      panel.chart.setData(data)
      const steps = data[0].length
      panel.element.dataset.points = steps
      panel.element.dataset.last = steps ? data[0].at(-1) : ""
      const over = this.data.runs.every(run => this.answers.get(run.id)?.over)
      panel.empty.hidden = steps > 0
      panel.plot.classList.toggle("blank", steps === 0)
      panel.empty.textContent = over ? "No step was recorded." : "Curves appear after the first step."
      readLegend(this, panel)
    }
  }

  curve(key) {
    const whole = this.curves.get(key)
    const detail = this.zoom && this.detail.get(key)
    if (!whole || !detail?.steps.length || detail.width >= whole.width) return whole
    const first = detail.steps[0]
    const last = detail.steps.at(-1) + detail.width - 1
    const joined = { width: detail.width }
    const before = whole.steps.findIndex(step => step + whole.width > first)
    const after = whole.steps.findIndex(step => step > last)
    for (const column of ["steps", "mean", "low", "high"])
      joined[column] = [
        ...whole[column].slice(0, before < 0 ? whole.steps.length : before),
        ...detail[column],
        ...(after < 0 ? [] : whole[column].slice(after)),
      ]
    return joined
  }

  showStatus() {
    for (const panel of this.panels)
      for (const part of panel.parts) part.state.textContent = stateText(this.answers.get(part.run))
    const [run] = this.data.runs
    const answer = this.answers.get(run.id) ?? { status: run.status }
    const status = this.find(".status")
    status.hidden = this.data.runs.length > 1 || (answer.over && !answer.missing)
    fillStatus(status, answer)
  }
}

function merge(curves, key, part) {
  const old = curves.get(key)
  if (!old || part.reset) {
    curves.set(key, part)
    return true
  }
  if (!part.steps.length) return false
  const cut = old.steps.findIndex(step => step >= part.steps[0])
  const kept = cut < 0 ? old.steps.length : cut
  const grew = kept + part.steps.length > old.steps.length
  for (const column of ["steps", "mean", "low", "high"]) old[column].splice(kept, Infinity, ...part[column])
  return grew
}

// ---- one chart

// How a metric of a run is drawn: a band and a faint raw line under the main line, or dots.
function parts(runs, panel, theme) {
  const several = runs.length > 1
  return runs.flatMap((run, r) =>
    panel.metrics.map((metric, m) => {
      const [split] = metric.split("/")
      const color = theme.series[(several ? r : m) % theme.series.length]
      const label = several ? (panel.metrics.length > 1 ? `${run.label}, ${split}` : run.label) : split
      return { key: `${run.id}|${metric}`, run: several ? run.id : null, label, color, dots: isDotted(metric), band: !several && split === "train" }
    })
  )
}

const isDotted = metric => !metric.startsWith("train/") // measured once per epoch: few points, drawn as dots

function columns(view, panel, part) {
  const curve = view.curve(part.key) ?? { width: 1, steps: [], mean: [], low: [], high: [] }
  const positive = values => (view.log && !panel.percent ? values.map(v => (v > 0 ? v : null)) : values)
  const nothing = curve.steps.map(() => undefined)
  const mean = positive(curve.mean)
  if (part.dots) return [curve.steps, mean]
  const faint = view.smoothing ? mean : nothing
  const main = view.smoothing ? smooth(mean, view.smoothing) : mean
  if (!part.band) return [curve.steps, faint, main]
  const wide = curve.width > 1
  return [curve.steps, wide ? positive(curve.low) : nothing, wide ? positive(curve.high) : nothing, faint, main]
}

function makeChart(view, panel) {
  const { theme } = view
  const series = [{ label: "step" }]
  const bands = []
  for (const part of panel.parts) {
    const line = { stroke: part.color, width: part.dots ? 2 : 1.5, points: { show: false }, spanGaps: false }
    if (part.band) {
      const none = { ...line, width: 0, stroke: "transparent" }
      series.push(none, { ...none })
      bands.push({ series: [series.length - 1, series.length - 2], fill: fade(part.color, 0.16) })
    }
    if (!part.dots) series.push({ ...line, width: 1, stroke: fade(part.color, 0.35) })
    part.index = series.length
    if (part.dots) line.points = { show: true, size: 6, fill: part.color, stroke: part.color }
    series.push(line)
    part.indexes = Array.from({ length: part.dots ? 1 : part.band ? 4 : 2 }, (_, i) => part.index - i)
  }
  const log = view.log && !panel.percent
  const axis = {
    stroke: theme.text, font: `11px ${theme.font}`, grid: { stroke: theme.grid, width: 1 },
    ticks: { stroke: theme.grid, width: 1, size: 4 }, gap: 5,
  }
  const chart = new window.uPlot(
    {
      width: Math.max(panel.plot.clientWidth, 120),
      height: HEIGHT,
      padding: [10, self => Math.max(8, halfWidth(stepText(Math.round(self.scales.x.max ?? 0)), axis.font)), 0, 0],
      legend: { show: false },
      series,
      bands,
      scales: {
        x: { time: false, range: (_, min, max) => view.zoom ?? (min == null ? [0, 1] : min === max ? [min - 1, max + 1] : [min, max]) },
        y: { distr: log ? 3 : 1, range: (_, min, max) => yRange(min, max, panel, log, view.zoom) },
      },
      axes: [
        { ...axis, size: 32, space: 60, incrs: STEPS, values: (_, ticks) => ticks.map(stepText) },
        { ...axis, size: 50, space: 34, values: (_, ticks) => ticks.map(v => (v == null ? "" : shown(v, panel, true))) },
      ],
      cursor: {
        y: false,
        drag: { x: true, y: false, dist: 5, setScale: false },
        hover: { bias: -1, skip: [undefined, null] },
        points: { size: 8 },
        sync: { key: view.syncKey ??= crypto.randomUUID?.() ?? String(Math.random()), scales: ["x", null], filters: { pub: type => type === "mousemove" || type === "mouseleave" } },
        bind: { dblclick: () => () => (view.setZoom(null), null) },
      },
      hooks: {
        setSelect: [
          self => {
            const { left, width } = self.select
            if (width < 5) return
            const range = [self.posToVal(left, "x"), self.posToVal(left + width, "x")]
            self.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false)
            view.setZoom(range)
          },
        ],
        setCursor: [() => readLegend(view, panel)],
        setScale: [
          (self, key) => {
            if (key === "x") panel.element.dataset.range = `${self.scales.x.min}:${self.scales.x.max}`
          },
        ],
      },
    },
    window.uPlot.join(panel.parts.map(part => columns(view, panel, part))),
    panel.plot
  )
  for (const part of panel.parts)
    if (view.hidden.has(part.key)) part.indexes.forEach(i => chart.setSeries(i, { show: false }))
  return chart
}

const stepText = step => step.toLocaleString("en")

// Half the width of a label at the right edge, which is centred below the last step.
function halfWidth(text, font) {
  const pen = (halfWidth.pen ??= document.createElement("canvas").getContext("2d"))
  pen.font = font
  return Math.ceil(pen.measureText(text).width / 2) + 1
}

const STEPS = [1, 2, 5, 10, 20, 25, 50, 100, 200, 250, 500, 1e3, 2e3, 2500, 5e3, 1e4, 2e4, 5e4, 1e5, 2e5, 5e5, 1e6]

function yRange(min, max, panel, log, zoom) {
  if (min == null) return log ? [0.1, 10] : [0, 1]
  if (log) return [min * 0.92, max * 1.08]
  const pad = Math.max((max - min) * 0.07, Math.abs(max) * 0.01, 1e-6)
  if (panel.percent) return [zoom ? Math.max(0, min - pad) : 0, Math.min(1.005, max + pad)]
  return [min >= 0 ? Math.max(0, min - pad) : min - pad, max + pad]
}

function smooth(values, weight) {
  let mean = 0
  let mass = 0
  return values.map(value => {
    if (value == null) return value
    mean = weight * mean + (1 - weight) * value
    mass = weight * mass + (1 - weight)
    return mean / mass
  })
}

function fit(panel) {
  const width = panel.plot.clientWidth
  if (panel.chart && width && width !== panel.chart.width) panel.chart.setSize({ width, height: HEIGHT })
}

// ---- DOM around the charts; text from the server is only ever set as text nodes

function make(tag, attributes = {}, ...children) {
  const element = Object.assign(document.createElement(tag), attributes)
  element.append(...children)
  return element
}

function skeleton(panel, box) {
  const at = make("span", { className: "at" })
  const legend = make("div", { className: "legend" })
  const empty = make("div", { className: "empty" })
  const plot = make("div", { className: "plot" }, empty)
  plot.style.minHeight = `${HEIGHT}px`
  plot.setAttribute("role", "img")
  const element = make("section", { className: "panel" })
  element.append(make("header", {}, make("h4", { textContent: panel.title }), at), plot, legend)
  element.setAttribute("aria-label", `${panel.title} over steps`)
  box.append(element)
  return { element, plot, legend, at, empty }
}

function makeLegend(view, panel) {
  panel.legend.replaceChildren(
    ...panel.parts.map(part => {
      const mark = make("i", { className: part.dots ? "mark dots" : "mark" })
      mark.style.setProperty("--mark", part.color)
      part.value = make("b", { textContent: "–" })
      part.state = make("span", { className: "quiet" })
      const button = make("button", { type: "button", title: "Show or hide" }, mark, part.label, part.value, part.state)
      button.setAttribute("aria-pressed", String(!view.hidden.has(part.key)))
      button.onclick = () => {
        const show = view.hidden.delete(part.key)
        if (!show) view.hidden.add(part.key)
        button.setAttribute("aria-pressed", String(show))
        part.indexes.forEach(i => panel.chart?.setSeries(i, { show }))
      }
      return button
    })
  )
}

function readLegend(view, panel) {
  const { chart } = panel
  if (!chart) return
  const hovering = chart.cursor.idx != null && chart.cursor.left >= 0
  const step = chart.data[0][hovering ? chart.cursor.idx : chart.data[0].length - 1]
  // At rest, show the last measured value; otherwise the drawn value, which is a mean over steps in long runs.
  const atRest = !hovering && !view.zoom && !view.smoothing
  const measured = atRest ? panel.parts.map(part => view.lastMeasured(part.key)) : []
  const shownStep = Math.max(step ?? 0, ...measured.map(last => last?.[0] ?? 0))
  panel.at.textContent = step === undefined ? "" : `step ${shownStep.toLocaleString("en")}`
  const read = []
  for (const [number, part] of panel.parts.entries()) {
    const values = chart.data[part.index] ?? []
    let at = hovering ? chart.cursor.idx : values.length - 1
    while (at >= 0 && values[at] === undefined) at -= 1
    const value = measured[number] ? measured[number][1] : values[at]
    part.value.textContent = value === undefined ? "–" : value === null ? "not a number" : shown(value, panel)
    read.push(`${part.label} ${part.value.textContent}`)
  }
  panel.plot.setAttribute("aria-label", `${panel.title}: ${read.join(", ")}`)
}

function shown(value, panel, short = false) {
  if (panel.percent) return `${(100 * value).toFixed(short ? (100 * value % 1 ? 1 : 0) : 1)} %`
  if (value === 0) return "0"
  const size = Math.abs(value)
  if (size < 1e-3 || size >= 1e5) return value.toExponential(short ? 0 : 2)
  return String(Number(value.toPrecision(short ? 3 : 4)))
}

const STATUS_WORDS = { queued: "Waiting in the queue", starting: "Starting the trainer" }

function fillStatus(box, run) {
  if (!box.firstChild) {
    const bar = make("div", { className: "bar" }, make("i"))
    bar.setAttribute("role", "progressbar")
    bar.setAttribute("aria-valuemin", "0")
    bar.setAttribute("aria-valuemax", "100")
    bar.setAttribute("aria-label", "Progress")
    box.append(
      make("span", { className: "badge" }), make("span", { className: "phase" }), bar,
      make("span", { className: "quiet" })
    )
  }
  const [badge, phase, bar, times] = box.children
  badge.className = `badge ${run.status}`
  badge.textContent = run.missing ? "deleted" : run.status
  phase.textContent = phaseText(run)
  const share = run.progress?.total ? Math.min(1, run.progress.done / run.progress.total) : null
  bar.hidden = run.over || share === null
  bar.firstChild.style.width = `${100 * (share ?? 0)}%`
  bar.setAttribute("aria-valuenow", String(Math.round(100 * (share ?? 0))))
  times.textContent = timeText(run)
}

function phaseText(run) {
  const p = run.progress
  if (run.over) return ""
  if (run.status === "stopping") return p && p.phase !== "preparing" ? "Saving a checkpoint, then stopping" : "Stopping"
  if (STATUS_WORDS[run.status]) return STATUS_WORDS[run.status]
  if (!p) return ""
  const of = `${p.done.toLocaleString("en")} of ${p.total.toLocaleString("en")}`
  if (p.phase === "preparing") return p.total > 1 ? `Computing features: ${of} clips` : "Loading the network"
  if (p.phase === "testing") return "Evaluating on the test split"
  return p.epoch ? `Epoch ${p.epoch} of ${p.max_epochs}, step ${of}` : `Step ${of}`
}

function timeText(run) {
  if (!run.started_ms) return run.queued_ms && !run.over ? `queued for ${duration(run.now_ms - run.queued_ms)}` : ""
  const ran = duration((run.ended_ms ?? run.now_ms) - run.started_ms)
  if (run.over) return run.status === "finished" ? `took ${ran}` : `after ${ran}`
  const eta = run.status === "running" ? run.progress?.eta_s : null
  return eta == null ? ran : `${ran} · about ${duration(1000 * eta)} left`
}

function duration(ms) {
  const s = Math.max(0, Math.round(ms / 1000))
  if (s < 60) return `${s} s`
  if (s < 3600) return `${Math.floor(s / 60)} min ${String(s % 60).padStart(2, "0")} s`
  return `${Math.floor(s / 3600)} h ${String(Math.floor((s % 3600) / 60)).padStart(2, "0")} min`
}

// Shown next to a run's name in a legend of several: finished runs need no note.
function stateText(answer) {
  if (!answer || (answer.over && answer.status === "finished")) return ""
  const { progress, status, over } = answer
  return !over && progress?.total ? `${status} ${Math.round((100 * progress.done) / progress.total)} %` : status ?? "deleted"
}

function readTheme(root) {
  const style = getComputedStyle(root)
  const read = name => style.getPropertyValue(name).trim()
  return {
    text: fade(style.color, 0.75),
    grid: read("--st-border-color") || fade(style.color, 0.15),
    font: style.fontFamily,
    series: read("--st-chart-categorical-colors").split(",").map(color => color.trim()).filter(Boolean),
  }
}

// A canvas resolves any CSS colour to RGB, which avoids parsing colours here.
function fade(color, alpha) {
  const pen = (fade.pen ??= document.createElement("canvas").getContext("2d", { willReadFrequently: true }))
  pen.globalAlpha = 1
  pen.clearRect(0, 0, 1, 1)
  pen.fillStyle = color
  pen.fillRect(0, 0, 1, 1)
  const [r, g, b] = pen.getImageData(0, 0, 1, 1).data
  return `rgba(${r}, ${g}, ${b}, ${alpha})`
}
