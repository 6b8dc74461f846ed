"use strict";
// The charts of the report, drawn with Observable Plot when they come near the screen. A chart's data stand beside it as
// JSON; every colour is a variable of page.css, so that a change of the colour scheme needs no new drawing.
const show = (value, digits = 4) => (value == null ? "" : `${Number(value.toPrecision(digits))}`.replace("-", "\u2212"));
const signed = (value) => (value == null ? "" : `${value < 0 ? "\u2212" : "+"}${Math.abs(value).toFixed(2)}`);
const between = (low, high, text = show) => (low == null ? "" : `[${text(low)}, ${text(high)}]`);
const node = (tag, attributes = {}, ...children) => {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) if (value !== false) made.setAttribute(name, value);
  made.append(...children);
  return made;
};
const FRAME = { style: { background: "none", overflow: "visible", fontSize: "12px" }, className: "plot" };
const GRID = { stroke: "var(--line)", strokeOpacity: 1 };
const label = (svg, text) => {
  svg.setAttribute("aria-hidden", "true");
  return node("div", { role: "img", "aria-label": text }, svg);
};

// What a figure draws: `state` is its controls' values, `draw` fills the plot, `table` gives the values as rows.
const KINDS = {
  rank_map: {
    state: (data) => ({ at: steps(data).length - 1, seeds: Object.keys(data.arms[0].courses)[0] }),
    controls(data, state, again) {
      const all = steps(data), made = [];
      if (all.length > 1) {
        const where = node("output", {});
        const slider = node("input", { type: "range", min: 0, max: all.length - 1, value: state.at, step: 1 });
        const say = () => {
          where.textContent = `step ${all[state.at]}${state.at ? `, change ${state.at} of ${all.length - 1}` : ", start"}`;
          slider.setAttribute("aria-valuetext", where.textContent);
        };
        slider.addEventListener("input", () => ((state.at = Number(slider.value)), say(), again()));
        say();
        made.push(node("label", { class: "wide" }, "Round", slider, where));
      }
      return [...made, ...seedChoice([...new Set(data.arms.flatMap((arm) => Object.keys(arm.courses)))], state, again)];
    },
    draw(data, state, box, width) {
      const all = steps(data), step = all[state.at], most = reach(data);
      const narrow = Math.min(width, data.arms.filter((arm) => one(arm) == null).length === 1 ? 580 : 430);
      const still = data.arms.filter((arm) => one(arm) != null);
      for (const arm of data.arms.filter((arm) => one(arm) == null)) {
        const [of, course] = courseOf(arm, state), ranks = course[Math.max(0, arm.steps.findLastIndex((s) => s <= step))];
        const cells = arm.layers.flatMap((layer, y) => arm.types.map((type, x) => ({ layer, type, k: y * arm.types.length + x })));
        const known = cells.filter((cell) => ranks[cell.k] != null);
        const svg = Plot.plot({
          ...FRAME, width: narrow, height: 76 + 32 * arm.layers.length, marginLeft: 26, marginTop: 22, marginRight: 4, marginBottom: 52, padding: 0.06,
          x: { type: "band", domain: arm.types, label: null, tickRotate: -35, tickSize: 0 }, y: { type: "band", domain: arm.layers, label: "layer", labelAnchor: "top", labelArrow: "none", tickSize: 0 },
          marks: [
            Plot.cell(known, { x: "type", y: "layer", fill: (cell) => tint(ranks[cell.k] - data.centre, most), rx: 3 }),
            (index, scales, values, size, context) => sparks(known, course, arm, scales, state.at, all),
            Plot.text(known, { x: "type", y: "layer", text: (cell) => show(ranks[cell.k], 3), fill: "currentColor", dy: arm.steps.length > 1 ? -5 : 0 }),
            Plot.tip(known, Plot.pointer({
              x: "type", y: "layer", maxRadius: 60,
              title: (cell) => `layer ${cell.layer}, ${cell.type}\nrank ${show(ranks[cell.k])} (${of})\n${path(course, cell.k)}`,
            })),
          ],
        });
        box.append(node("div", { class: "panel" }, node("p", { class: "name" }, swatch(arm.colour), arm.name), label(svg, `${arm.name}: ranks at step ${step}, ${of}; the values stand in the table below`)));
      }
      for (const [rank, arms] of Map.groupBy(still, one)) box.append(node("p", { class: "hint" }, `Rank ${show(rank)} in every matrix throughout: ${arms.map((arm) => arm.name).join(", ")}.`));
      if (still.length < data.arms.length) box.append(node("p", { class: "hint" }, swatch("var(--over)"), `above the budget's mean rank ${show(data.centre)} `, swatch("var(--under)"), "below. The line in a cell is the course of its rank."));
    },
    table(data, state) {
      const all = steps(data), step = all[state.at];
      return [["Method", "Runs", "Layer", ...data.arms[0].types], data.arms.flatMap((arm) => {
        const [of, course] = courseOf(arm, state), ranks = course[Math.max(0, arm.steps.findLastIndex((s) => s <= step))];
        return arm.layers.map((layer, y) => [arm.name, of, layer, ...arm.types.map((_, x) => show(ranks[y * arm.types.length + x], 3))]);
      })];
    },
  },
  lines: {
    state: () => ({ hidden: new Set(), seeds: "mean" }),
    controls(data, state, again) {
      const every = data.panels.flatMap((panel) => panel.series), seeds = [...new Set(every.flatMap((one) => Object.keys(one.seeds ?? {})))];
      return [...legend(every, state, again), ...seedChoice(seeds.length ? ["mean", ...seeds] : [], state, again)];
    },
    draw(data, state, box, width) {
      const wide = data.panels.length > 1 && width > 700 ? (width - 24) / 2 : Math.min(width, 760);
      const shown = (panel) => panel.series.filter((one) => !state.hidden.has(one.name)).flatMap((one) => pointsOf(one, state.seeds));
      const all = data.panels.flatMap(shown), alike = data.dots == null ? {} : sharedScales(data.panels, all);
      for (const panel of data.panels) {
        const points = shown(panel);
        const svg = Plot.plot({
          ...FRAME, width: wide, height: 300, marginLeft: 48, marginRight: 12, marginBottom: 42,
          x: { type: data.log ? "log" : "linear", label: data.x, grid: false, nice: false, ...alike.x },
          y: { label: panel.y, nice: true, ...alike.y },
          marks: [
            Plot.gridY(GRID),
            data.log ? Plot.axisX(logTicks(all), { text: logTick, label: data.x }) : null, // a log axis of its own leaves labels out
            panel.rule ? Plot.ruleY([panel.rule.value], { stroke: "var(--soft)", strokeDasharray: "2 4" }) : null,
            panel.rule && points.length ? Plot.text([panel.rule], { x: Math.max(...(alike.x ? all : points).map((p) => p.x)), y: "value", text: "label", textAnchor: "end", dy: -7, fill: "var(--soft)" }) : null,
            ...panel.series.filter((one) => !state.hidden.has(one.name)).flatMap((one) => {
              const mine = points.filter((point) => point.name === one.name), banded = mine.filter((point) => point.low != null);
              return [
                data.dots != null ? Plot.ruleX(banded, { x: "x", y1: "low", y2: "high", stroke: one.colour }) : Plot.areaY(banded, { x: "x", y1: "low", y2: "high", fill: one.colour, fillOpacity: 0.16 }),
                Plot.line(mine, { x: "x", y: "y", stroke: one.colour, strokeWidth: 2, strokeDasharray: one.dash || null }),
                data.dots != null ? Plot.dot(mine, { x: "x", y: "y", r: (point) => (point.x === one.best ? 6 : 3.5), stroke: one.colour, fill: (point) => (point.open ? "var(--page)" : one.colour) }) : null,
              ];
            }),
            Plot.tip(points, Plot.pointer({ x: "x", y: "y", title: (point) => point.title, maxRadius: 80 })),
          ],
        });
        box.append(node("div", { class: "panel" }, label(svg, `${panel.y} by ${data.x}; the values stand in the table below`)));
      }
      box.append(node("p", { class: "hint" }, state.seeds === "mean" ? `Lines: means over seeds; bands: ${data.band}.` : `Lines: ${state.seeds} alone.`, data.dots ? ` ${data.dots}` : ""));
    },
    table: (data) => [["Method", "Of", data.x, "Mean", "Low", "High", "Seeds"], data.panels.flatMap((panel) => panel.series.flatMap((one) => one.x.map((x, i) => [
      one.name, panel.y, show(x), show(one.mean[i]), show(one.low?.[i]), show(one.high?.[i]), Object.values(one.seeds ?? {}).map((values) => show(values[i])).join(", "),
    ])))],
  },
  points: {
    state: () => ({ hidden: new Set() }),
    controls: (data, state, again) => legend(data.panels.flatMap((panel) => panel.points), state, again),
    draw(data, state, box, width) {
      const wide = data.panels.length > 1 && width > 700 ? (width - 24) / 2 : Math.min(width, 620);
      for (const panel of data.panels) {
        const points = panel.points.filter((point) => !state.hidden.has(point.name));
        const svg = Plot.plot({
          ...FRAME, width: wide, height: 290, marginLeft: 48, marginRight: 16, marginBottom: 42,
          x: { type: panel.log ? "log" : "linear", label: panel.x, inset: 16, tickFormat: panel.log ? "~s" : undefined, ticks: panel.log ? 4 : Math.max(3, wide / 90) }, y: { label: data.y, inset: 8, nice: true },
          symbol: { type: "identity" },
          marks: [
            Plot.gridY(GRID),
            Plot.line(panel.front, { x: "0", y: "1", stroke: "var(--soft)", strokeDasharray: "3 3" }),
            Plot.ruleX(points.filter((point) => point.low != null), { x: "x", y1: "low", y2: "high", stroke: (point) => point.colour, strokeWidth: 1.5 }),
            ...points.map((point) => Plot.dot([point], { x: "x", y: "y", r: 6, symbol: point.symbol, fill: point.colour, stroke: "var(--page)" })),
            Plot.tip(points, Plot.pointer({ x: "x", y: "y", maxRadius: 80, title: (point) => `${point.name}${point.budget ? `, ${point.budget}` : ""}\n${show(point.y)} ${between(point.low, point.high)} over ${point.n} seeds\n${panel.x}: ${point.x.toLocaleString("en")}` })),
          ],
        });
        box.append(node("div", { class: "panel" }, label(svg, `${data.y} against ${panel.x}; the values stand in the table below`)));
      }
      box.append(node("p", { class: "hint" }, "Bars: 95 % t interval over seeds, from three seeds on. Dashed: arms that no other beats in both."));
    },
    table: (data) => [["Method", "Budget", "Cost", "Value", data.y, "Interval", "n"], data.panels.flatMap((panel) => panel.points.map((point) => [
      point.name, point.budget ?? "", panel.x, show(point.x, 6), show(point.y), between(point.low, point.high), `${point.n}`,
    ]))],
  },
  forest: {
    state: () => ({}),
    controls: () => [],
    draw(data, state, box, width) {
      const wide = Math.min(width, 680), left = Math.min(170, wide * 0.36), names = data.rows.map((row) => row.name);
      const ends = data.rows.flatMap((row) => [row.mean, row.low, row.high, row.low_items, row.high_items, ...Object.values(row.tasks ?? {}), ...(row.seeds ?? [])]).filter((end) => end != null);
      const ticks = data.rows.flatMap((row) => [...Object.entries(row.tasks ?? {}), ...(row.seeds ?? []).map((gap) => ["", gap])].map(([, gap]) => ({ name: row.name, gap, colour: row.colour })));
      const svg = Plot.plot({
        ...FRAME, width: wide, height: 54 + 40 * names.length, marginLeft: left, marginRight: 14, marginTop: 8, marginBottom: 42,
        x: { label: data.x, domain: padded([...ends, 0, data.margin ?? 0, -(data.margin ?? 0)]), tickFormat: "+" }, y: { type: "band", domain: names, label: null },
        marks: [
          Plot.gridX(GRID),
          data.margin ? Plot.rect([0], { x1: -data.margin, x2: data.margin, fill: "var(--soft)", fillOpacity: 0.12 }) : null,
          Plot.ruleX([0], { stroke: "var(--ink)" }),
          Plot.axisY({ lineWidth: left / 13, tickSize: 0 }),
          Plot.tickX(ticks, { x: "gap", y: "name", stroke: "colour", strokeOpacity: 0.55, inset: 11 }),
          Plot.link(data.rows.filter((row) => row.low_items != null), { x1: "low_items", x2: "high_items", y: "name", stroke: "colour", strokeWidth: 1.5 }),
          Plot.link(data.rows.filter((row) => row.low != null), { x1: "low", x2: "high", y: "name", stroke: "colour", strokeWidth: 5 }),
          Plot.dot(data.rows, { x: "mean", y: "name", r: 6, stroke: "colour", strokeWidth: 2.5, fill: (row) => (row.claim ? row.colour : "var(--page)") }),
          Plot.tip(data.rows, Plot.pointerY({ x: "mean", y: "name", title: forestTitle })),
        ],
        color: { type: "identity" },
      });
      box.append(label(svg, `${data.x}, a row for each comparison; the values stand in the table below`));
      const few = data.rows.some((row) => row.seeds), parts = ["Thick: 95 % interval over seeds."];
      if (data.rows.some((row) => row.low_items != null)) parts.push("Thin: over seeds and items.");
      parts.push(few ? "Ticks: single seeds." : "Ticks: single tasks.", few ? "" : "Filled: a claim is made.");
      if (data.margin) parts.push(`Shaded: the margin of equivalence, ${data.margin} points.`);
      box.append(node("p", { class: "hint" }, parts.join(" ")));
    },
    table: (data) => [["Comparison", "Difference", "Interval", "Seeds and items", "p", "Corrected p", "n", "Parts"], data.rows.map((row) => [
      row.name, signed(row.mean), between(row.low, row.high, signed), between(row.low_items, row.high_items, signed), row.p ?? "", row.p_corrected ?? "", `${row.n}`,
      [...Object.entries(row.tasks ?? {}).map(([task, gap]) => `${task} ${signed(gap)}`), ...(row.seeds ?? []).map(signed)].join(", "),
    ])],
  },
};

const steps = (data) => [...new Set(data.arms.flatMap((arm) => arm.steps))].sort((a, b) => a - b);
const reach = (data) => Math.max(1, ...data.arms.flatMap((arm) => Object.values(arm.courses).flat(2)).filter((rank) => rank != null).map((rank) => Math.abs(rank - data.centre)));
// the rank of an arm that has the same in every matrix and round
const one = (arm) => {
  const ranks = new Set(Object.values(arm.courses).flat(2).filter((rank) => rank != null));
  return ranks.size === 1 ? [...ranks][0] : null;
};
const tint = (gap, most) => `color-mix(in oklab, var(--${gap < 0 ? "under" : "over"}) ${Math.round((92 * Math.abs(gap)) / most)}%, var(--cell))`;
const courseOf = (arm, state) => {
  const of = arm.courses[state.seeds] ? state.seeds : Object.keys(arm.courses)[0];
  return [of, arm.courses[of]];
};
const path = (course, k) => course.map((ranks) => ranks[k]).filter((rank, i, all) => i === 0 || rank !== all[i - 1]).map((rank) => show(rank, 3)).join(" \u2192 ");
const swatch = (colour, dash = "") => {
  const mark = node("span", { class: dash ? "swatch dashed" : "swatch", "aria-hidden": "true" });
  mark.style.color = colour;
  return mark;
};
// the course of every cell's rank as a line of steps in the cell, and a dot at the round that is shown
const sparks = (cells, course, arm, scales, at, all) => {
  const group = document.createElementNS("http://www.w3.org/2000/svg", "g");
  group.setAttribute("class", "sparks");
  const wide = scales.scales.x.bandwidth, high = scales.scales.y.bandwidth, last = all.at(-1) || 1;
  for (const cell of cells) {
    const ranks = course.map((row) => row[cell.k]), low = Math.min(...ranks), top = Math.max(...ranks);
    if (low === top) continue;
    const x = (step) => scales.x(cell.type) + 2 + ((wide - 4) * Math.max(0, step)) / last;
    const y = (rank) => scales.y(cell.layer) + high - 3 - (9 * (rank - low)) / (top - low);
    const line = document.createElementNS("http://www.w3.org/2000/svg", "path");
    line.setAttribute("d", ranks.map((rank, i) => (i ? `H${x(arm.steps[i])}V${y(rank)}` : `M${x(arm.steps[0])},${y(rank)}`)).join("") + `H${x(last)}`);
    group.append(line);
  }
  return group;
};
const seedChoice = (names, state, again) => {
  if (names.length < 2) return [];
  const select = node("select", {}, ...names.map((name) => node("option", { value: name }, name === "mean" ? "mean and band" : name)));
  select.value = state.seeds;
  select.addEventListener("change", () => ((state.seeds = select.value), again()));
  return [node("label", {}, "Runs", select)];
};
const legend = (series, state, again) => [...new Map(series.map((one) => [one.name, one])).values()].map((one) => {
  const button = node("button", { type: "button", class: "key", "aria-pressed": "true" }, swatch(one.colour, one.dash), one.name);
  button.addEventListener("click", () => {
    state.hidden.has(one.name) ? state.hidden.delete(one.name) : state.hidden.add(one.name);
    button.setAttribute("aria-pressed", String(!state.hidden.has(one.name)));
    again();
  });
  return button;
});
const pointsOf = (one, seeds) => {
  const single = seeds !== "mean" ? one.seeds?.[seeds] : null;
  if (seeds !== "mean" && one.seeds && !single) return [];
  return one.x.map((x, i) => ({
    name: one.name, x, y: (single ?? one.mean)[i], low: single ? null : one.low?.[i], high: single ? null : one.high?.[i], open: one.open?.[i],
    title: [`${one.name}, ${show(x)}`, single ? `${seeds}: ${show(single[i])}` : `${show(one.mean[i])} ${between(one.low?.[i], one.high?.[i])}`,
      ...(single ? [] : [Object.values(one.seeds ?? {}).map((values) => show(values[i])).join("  ")])].filter(Boolean).join("\n"),
  }));
};
const logTicks = (points) => [...new Set(points.map((point) => point.x))].filter((x, i, all) => all.length < 7 || i % 2 === 0);
const logTick = (x) => (x < 1 ? x.toExponential(0).replace("e-", "e\u2212") : x.toLocaleString("en"));
const sharedScales = (panels, points) => {
  const x = points.map((point) => point.x), y = [...points.flatMap((p) => [p.y, p.low ?? p.y, p.high ?? p.y]), ...panels.flatMap((panel) => panel.rule?.value ?? [])];
  const from = (values) => (Math.min(...values) < Math.max(...values) ? { domain: [Math.min(...values), Math.max(...values)] } : {});
  return { x: { inset: 8, ...from(x) }, y: from(y) };
};
const padded = (ends) => {
  const low = Math.min(...ends), high = Math.max(...ends), room = 0.06 * (high - low || 1);
  return [low - room, high + room];
};
const forestTitle = (row) => [
  row.name, `${signed(row.mean)} ${between(row.low, row.high, signed)} points, ${row.n} seeds`,
  row.low_items == null ? "" : `seeds and items ${between(row.low_items, row.high_items, signed)}`,
  row.p ? `p = ${row.p}, corrected ${row.p_corrected}` : "", ...Object.entries(row.tasks ?? {}).map(([task, gap]) => `${task} ${signed(gap)}`),
  row.seeds ? row.seeds.map(signed).join("  ") : "",
].filter(Boolean).join("\n");

const open = (figure) => {
  if (figure.again) return figure.again;
  const data = JSON.parse(figure.querySelector("script").textContent), kind = KINDS[figure.dataset.kind], state = kind.state(data);
  const box = figure.querySelector(".drawing"), values = figure.querySelector("details.values");
  const list = () => {
    if (!values.open) return;
    const [heads, rows] = kind.table(data, state);
    const head = node("thead", {}, node("tr", {}, ...heads.map((text) => node("th", { scope: "col" }, text))));
    const body = node("tbody", {}, ...rows.map((row) => node("tr", {}, ...row.map((text) => node("td", {}, text)))));
    values.querySelector(".scroll").replaceChildren(node("table", { class: "plain" }, head, body));
  };
  const again = () => {
    box.replaceChildren();
    kind.draw(data, state, box, Math.max(280, figure.clientWidth));
    if (data.whole === false) box.append(node("p", { class: "hint" }, "Single seeds are not shown: they are too many for one page."));
    list();
  };
  figure.querySelector(".controls").append(...kind.controls(data, state, again));
  values.addEventListener("toggle", list);
  again();
  figure.drawnAt = figure.clientWidth;
  return (figure.again = again);
};
const drawings = all("figure[data-kind]");
const near = new IntersectionObserver((entries) => entries.filter((entry) => entry.isIntersecting).forEach((entry) => {
  near.unobserve(entry.target);
  open(entry.target);
}), { rootMargin: "800px" });
drawings.forEach((figure) => near.observe(figure));
new ResizeObserver(() => drawings.forEach((figure) => {
  if (figure.again && Math.abs(figure.drawnAt - figure.clientWidth) > 8) ((figure.drawnAt = figure.clientWidth), figure.again());
})).observe(document.getElementById("main"));
addEventListener("beforeprint", () => drawings.forEach(open));
