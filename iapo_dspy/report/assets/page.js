"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const at = (id) => document.getElementById(id);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const still = window.matchMedia("(prefers-reduced-motion: reduce)");
  const Z95 = 1.959964;
  // Okabe and Ito's colours, told apart by most colour-blind readers; symbols tell further prompts apart.
  const COLOURS = {
    light: ["#0072b2", "#d55e00", "#00795a", "#a8517f", "#8a6d00", "#2f7fb5", "#6b4bb8", "#555f6b"],
    dark: ["#56b4e9", "#f08a3c", "#2fc79a", "#e29cc4", "#f0e442", "#9ecbff", "#b9a3f5", "#b8c0cc"],
  };
  const SYMBOLS = ["circle", "square", "triangle-up", "cross", "x", "triangle-down", "pentagon"];
  const PANEL = { displayModeBar: false, responsive: true };

  const short = (text, most = 44) => (text.length <= most ? text : text.slice(0, most - 1) + "\u2026");
  const fixed = (value) => (value === null || value === undefined ? "not known" : value.toFixed(3));
  const amount = (value) => (value === null || value === undefined ? "not known" : String(Number(value.toPrecision(3))));
  const narrow = () => window.innerWidth < 640;

  const view = () => data.views[Number(at("view").value)];
  const axis = () => data.axes[Number(at("axis").value)];
  const label = (prompt) => `${prompt}: ${data.prompts[prompt].label}`;
  const said = (arm) => arm.words || `N=${arm.n} of prompt ${label(arm.prompt)}`;
  /** A text as Plotly shows it letter by letter: it takes some HTML, and braces behind a percent sign in templates. */
  const plain = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;").replace(/%\{/g, "%&#123;");
  const colour = (prompt) => {
    const list = COLOURS[dark.matches ? "dark" : "light"];
    return list[prompt % list.length];
  };
  const symbol = (prompt) => SYMBOLS[Math.floor(prompt / COLOURS.light.length) % SYMBOLS.length];
  const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const faint = (hex, alpha) => {
    const n = parseInt(hex.slice(1), 16);
    return `rgba(${n >> 16}, ${(n >> 8) & 255}, ${n & 255}, ${alpha})`;
  };

  /** The arm of the slider's preference and its utility: reward - weight * scale * cost. */
  function choose(position) {
    const v = view();
    const weight = v.weights[position];
    const arm = v.arms[v.chosen[position]];
    return { weight, arm, utility: arm.reward - weight * data.cost_scale * arm.use.cost };
  }

  function layout(x, y, legend) {
    const grid = style("--line");
    const both = { gridcolor: grid, linecolor: grid, zerolinecolor: grid, automargin: true };
    const below = { orientation: "h", yref: "container", y: 0, yanchor: "bottom", x: 0 };
    return {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: style("--text"), size: 13 },
      margin: { l: 56, r: 12, t: 12, b: legend && !narrow() ? 170 : 48 }, hovermode: "closest", showlegend: legend && !narrow(), legend: below,
      hoverlabel: { align: "left" }, xaxis: { ...both, title: { text: x } }, yaxis: { ...both, title: { text: y } },
      transition: { duration: still.matches ? 0 : 150 },
    };
  }

  /** Ticks of a logarithmic axis at 1, 2 and 5 of each power of ten; where it is narrow, at 1. */
  function ticks(values) {
    const first = Math.floor(Math.log10(Math.min(...values)));
    const last = Math.ceil(Math.log10(Math.max(...values)));
    const found = [];
    for (let power = first; power <= last; power += 1) {
      (narrow() ? [1] : [1, 2, 5]).forEach((digit) => found.push(Number(`${digit}e${power}`)));
    }
    return { tickvals: found, ticktext: found.map((value) => value.toLocaleString("en", { maximumSignificantDigits: 1 })) };
  }

  /** The range of an axis that shows these values with some room, and no more of a wide band. */
  function around(values) {
    const low = Math.min(...values);
    const high = Math.max(...values);
    const room = 0.08 * (high - low || 1);
    return [low - room, high + room];
  }

  /** The arms of a view, each once: the estimates of a cascade differ a little from weight to weight. */
  function distinct(v) {
    const seen = new Set();
    return v.arms.filter((arm) => {
      const key = `${arm.words || label(arm.prompt)} ${arm.n} ${arm.stop}`;
      return !seen.has(key) && seen.add(key);
    });
  }

  /** All arms under the current view, each with its use of the current resource and its reward. */
  function points() {
    const v = view();
    const a = axis();
    const found = [];
    v.reward.forEach((row, prompt) => row.forEach((reward, i) => {
      const use = a.values[prompt][i];
      if (reward === null || use === null) return;
      const error = v.standard_error === null ? null : v.standard_error[prompt][i];
      found.push({ prompt, n: i + 1, stop: "", words: "", reward, error, use, completions: i + 1 });
    }));
    distinct(v).forEach((arm) => {
      const use = arm.use[a.name];
      if ((arm.stop === "" && arm.words === "") || use === undefined) return;
      found.push({ prompt: arm.prompt, n: arm.n, stop: arm.stop, words: arm.words, reward: arm.reward, error: arm.standard_error, use,
        completions: arm.completions });
    });
    return found;
  }

  /** The points that no cheaper one beats, from the cheapest on. */
  function undominated(all) {
    let best = -Infinity;
    return [...all].sort((a, b) => a.use - b.use || b.reward - a.reward).filter((p) => {
      const better = p.reward > best;
      if (better) best = p.reward;
      return better;
    });
  }

  function drawFrontier() {
    const all = points();
    const edge = undominated(all);
    const accent = style("--accent");
    const traces = [];
    if (edge.length && edge.every((p) => p.error !== null)) {
      const up = edge.map((p) => p.reward + Z95 * p.error);
      const low = edge.map((p) => p.reward - Z95 * p.error);
      traces.push({ x: [...edge.map((p) => p.use), ...edge.map((p) => p.use).reverse()],
        y: [...up, ...low.reverse()], fill: "toself", fillcolor: faint(accent, 0.14), line: { width: 0 },
        hoverinfo: "skip", mode: "lines", showlegend: false, name: "95 % band" });
    }
    data.prompts.forEach((prompt, i) => {
      const mine = all.filter((p) => p.prompt === i && !p.words);
      if (!mine.length) return;
      traces.push({ x: mine.map((p) => p.use), y: mine.map((p) => p.reward), mode: "markers", type: "scatter",
        name: plain(short(label(i))), marker: { color: faint(colour(i), 0.75), size: mine.map((p) => (p.stop ? 9 : 6)),
          symbol: mine.map((p) => (p.stop ? symbol(i) + "-open" : symbol(i))), line: { width: mine.map((p) => (p.stop ? 2 : 0)) } },
        text: mine.map((p) => `${plain(short(label(i), 60))}<br>N=${p.n}${p.stop ? `, ${p.completions.toFixed(1)} drawn` : ""}`
          + `<br>quality ${fixed(p.reward)}, ${amount(p.use)} ${axis().title.toLowerCase()}`),
        hovertemplate: "%{text}<extra></extra>" });
    });
    const several = all.filter((p) => p.words);
    if (several.length) {
      traces.push({ x: several.map((p) => p.use), y: several.map((p) => p.reward), mode: "markers", type: "scatter",
        name: "cascades and mixtures", marker: { symbol: "hexagram", size: 12, color: accent },
        text: several.map((p) => `${plain(p.words).replace(/; /g, ";<br>")}<br>${p.completions.toFixed(1)} drawn`
          + `<br>quality ${fixed(p.reward)}, ${amount(p.use)} ${axis().title.toLowerCase()}`),
        hovertemplate: "%{text}<extra></extra>" });
    }
    traces.push({ x: edge.map((p) => p.use), y: edge.map((p) => p.reward), mode: "lines", name: "frontier",
      line: { color: accent, width: 2, shape: "hv" }, hoverinfo: "skip" });
    const { arm } = choose(Number(at("weight").value));
    traces.push({ x: [arm.use[axis().name]], y: [arm.reward], mode: "markers", name: "chosen",
      marker: { symbol: "star", size: 20, color: style("--text"), line: { color: style("--ground"), width: 2 } },
      hovertemplate: "chosen by the slider<extra></extra>" });
    const drawn = layout(axis().title + " per call", "quality (task reward)", true);
    const used = all.map((p) => p.use).filter((use) => use > 0);
    const wide = used.length && Math.max(...used) / Math.min(...used) > 20;
    if (wide && used.length === all.length) drawn.xaxis = { ...drawn.xaxis, type: "log", ...ticks(used) };
    drawn.yaxis.range = around(all.map((p) => p.reward));
    Plotly.react("frontier-chart", traces, drawn, PANEL);
  }

  function moveStar() {
    const { arm } = choose(Number(at("weight").value));
    const chart = at("frontier-chart");
    const last = chart.data.length - 1;
    Plotly.restyle(chart, { x: [[arm.use[axis().name]]], y: [[arm.reward]] }, [last]);
  }

  function showChosen() {
    const position = Number(at("weight").value);
    const { weight, arm, utility } = choose(position);
    const out = at("chosen");
    const parts = [
      `Cost weight ${amount(weight)}: ${said(arm)}`,
      arm.stop,
      arm.stop || arm.words ? `${arm.completions.toFixed(1)} completions on average` : "",
      arm.abstains ? `no answer to ${(100 * arm.abstains).toFixed(1)} %` : "",
    ].filter(Boolean).join("; ");
    const uses = data.axes.filter((a) => arm.use[a.name] !== undefined)
      .map((a) => `${amount(arm.use[a.name])} ${a.title.toLowerCase()}`).join(", ");
    out.textContent = `${parts}. Utility ${fixed(utility)}, quality ${fixed(arm.reward)}`
      + (arm.standard_error === null ? "" : ` \u00b1 ${fixed(Z95 * arm.standard_error)}`) + `; per call ${uses}.`;
    Object.assign(out.dataset, { prompt: arm.prompt, n: arm.n, stop: arm.stop, words: arm.words, weight, utility });
    const told = arm.words || `prompt ${arm.prompt}, N ${arm.n}`;
    at("weight").setAttribute("aria-valuetext", `cost weight ${amount(weight)}, ${told}`);
  }

  function drawCurves() {
    const v = view();
    const scales = v.reward[0].map((_, i) => i + 1);
    const crossed = data.crossings[Number(at("view").value)];
    const leaders = new Set([...crossed.flatMap((c) => [c[1], c[2]]), ...v.arms.flatMap((arm) => arm.prompts)]);
    const traces = [];
    v.reward.forEach((row, prompt) => {
      if (row.every((value) => value === null)) return;
      const leads = leaders.has(prompt);
      if (leads && v.standard_error !== null) {
        const known = scales.filter((n) => row[n - 1] !== null && v.standard_error[prompt][n - 1] !== null);
        const end = (sign) => known.map((n) => row[n - 1] + sign * Z95 * v.standard_error[prompt][n - 1]);
        traces.push({ x: [...known, ...[...known].reverse()], y: [...end(1), ...end(-1).reverse()], fill: "toself",
          fillcolor: faint(colour(prompt), 0.12), line: { width: 0 }, mode: "lines", hoverinfo: "skip",
          showlegend: false, legendgroup: prompt });
      }
      traces.push({ x: scales, y: row, mode: "lines+markers", name: plain(short(label(prompt))), legendgroup: prompt,
        opacity: leads ? 1 : 0.5, line: { color: colour(prompt), width: leads ? 3 : 1.5, dash: prompt < COLOURS.light.length ? "solid" : "dot" },
        marker: { symbol: symbol(prompt), size: 5 },
        hovertemplate: `${plain(short(label(prompt), 60))}<br>N=%{x}: %{y:.3f}<extra></extra>` });
    });
    traces.push({ x: crossed.map((c) => c[0]), y: crossed.map((c) => v.reward[c[2]][c[0] - 1]), mode: "markers",
      name: "another prompt leads", marker: { symbol: "diamond-open", size: 15, color: style("--text"),
        line: { width: 3 } },
      hovertemplate: "from N=%{x} on another prompt leads<extra></extra>" });
    const drawn = layout("samples N", "quality (task reward)", true);
    drawn.xaxis.type = "log";
    drawn.yaxis.range = around(v.reward.flat().filter((value) => value !== null));
    drawn.xaxis.tickvals = scales.filter((n) => (n & (n - 1)) === 0 || n === scales.length);
    drawn.xaxis.ticktext = drawn.xaxis.tickvals.map(String);
    Plotly.react("curves-chart", traces, drawn, PANEL);
  }

  function drawRounds() {
    if (data.rounds === null || !data.rounds.length) {
      at("rounds-chart").hidden = true;
      return;
    }
    const x = data.rounds.map((_, i) => i + 1);
    const drawn = layout("round", "completions", true);
    drawn.margin.r = 56;
    drawn.xaxis.dtick = Math.ceil(x.length / 12);
    drawn.margin.b = 80;
    drawn.yaxis2 = { ...drawn.yaxis, title: { text: "prompts alive" }, overlaying: "y", side: "right", rangemode: "tozero", tickmode: "auto",
      showgrid: false };
    Plotly.react("rounds-chart", [
      { x, y: data.rounds.map((r) => r.completions), type: "bar", name: "completions", marker: { color: colour(0) } },
      { x, y: data.rounds.map((r) => r.prompts), mode: "lines+markers", name: "prompts alive", yaxis: "y2",
        line: { color: colour(1), shape: "hv" } },
    ], drawn, PANEL);
  }

  function drawConfidence() {
    if (!data.reliability.length) return;
    const drawn = layout("confidence", "share that was right", true);
    drawn.margin.b = 80;
    drawn.xaxis.range = [-0.03, 1.03];
    drawn.yaxis.range = [-0.05, 1.05];
    const most = Math.max(...data.reliability.flatMap((found) => found.count));
    Plotly.react("confidence-chart", [
      { x: [0, 1], y: [0, 1], mode: "lines", hoverinfo: "skip", showlegend: false, line: { color: style("--soft"), dash: "dot" } },
      ...data.reliability.map((found, i) => ({ x: found.confidence, y: found.right, mode: "lines+markers",
        name: plain(short(found.name)), line: { color: colour(i) },
        marker: { symbol: symbol(i), size: found.count.map((n) => 6 + 12 * Math.sqrt(n / most)) },
        text: found.count.map((n) => `${n} calls`),
        hovertemplate: "confidence %{x:.3f}, %{y:.3f} right, %{text}<extra></extra>" })),
    ], drawn, PANEL);
  }

  function table(columns, rows) {
    const made = document.createElement("table");
    const add = (parent, tag, texts, scope) => {
      const line = parent.insertRow();
      texts.forEach((text) => {
        const cell = document.createElement(tag);
        if (scope) cell.scope = scope;
        cell.textContent = text;
        line.append(cell);
      });
    };
    add(made.createTHead(), "th", columns, "col");
    const body = made.createTBody();
    rows.forEach((row) => add(body, "td", row));
    return made;
  }

  /** A region that scrolls is reached by the keyboard. */
  function reachable(place) {
    place.tabIndex = 0;
    place.setAttribute("role", "region");
    place.setAttribute("aria-label", "Table");
  }

  function fill(id, made) {
    at(id).replaceChildren(made);
    reachable(at(id));
  }

  function showTables() {
    const v = view();
    const from = (arm) => v.weights[v.chosen.indexOf(v.arms.indexOf(arm))];
    fill("arms-table", table(
      ["Prompt", "N", "Drawn", "Quality", "From weight", ...data.axes.map((a) => a.title)],
      distinct(v).map((arm) => [arm.words || label(arm.prompt), arm.words ? "" : arm.n, arm.completions.toFixed(1), fixed(arm.reward), amount(from(arm)),
        ...data.axes.map((a) => amount(arm.use[a.name]))])));
    const scales = v.reward[0].map((_, i) => i + 1).filter((n) => (n & (n - 1)) === 0 || n === v.reward[0].length);
    fill("curves-table", table(["Prompt", ...scales.map((n) => `N=${n}`)],
      v.reward.map((row, p) => [label(p), ...scales.map((n) => fixed(row[n - 1]))])));
  }

  function drawAll() {
    showChosen();
    showTables();
    drawFrontier();
    drawCurves();
    drawConfidence();
    drawRounds();
  }

  at("weight").addEventListener("input", () => { showChosen(); moveStar(); });
  at("axis").addEventListener("change", drawFrontier);
  at("view").addEventListener("change", drawAll);
  dark.addEventListener("change", drawAll);
  let wasNarrow = narrow();
  window.addEventListener("resize", () => {
    if (narrow() !== wasNarrow) {
      wasNarrow = narrow();
      drawAll();
    }
  });
  document.querySelectorAll("section div[style*='overflow-x']").forEach(reachable);
  drawAll();
  document.documentElement.dataset.ready = "yes";
})();
