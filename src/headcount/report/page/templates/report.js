// Draws the figures of a headcount report and moves its three controls. Nothing is fetched.
(() => {
  "use strict";
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const figures = read("figures");
  const extras = read("extras");
  const partner = new Map(Object.entries(read("colours")));
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const coarse = window.matchMedia("(pointer: coarse)");
  const config = {
    responsive: true,
    displayModeBar: false,
  };

  // A copy in the colours of the scheme that the reader prefers. Long rows of numbers are shared, not copied.
  const themed = (part) => {
    if (typeof part === "string") return (dark.matches && partner.get(part)) || part;
    if (Array.isArray(part)) return typeof part[0] === "number" ? part : part.map(themed);
    if (part === null || typeof part !== "object") return part;
    return Object.fromEntries(Object.entries(part).map(([key, value]) => [key, themed(value)]));
  };

  const draw = async (id) => {
    const place = document.getElementById(id);
    const { data, layout } = themed(figures[id]);
    const entries = data.filter((trace) => trace.showlegend !== false && trace.name && trace.type !== "heatmap").length;
    if (entries > 1 && place.clientWidth < 600) {
      // One entry a line: give the legend room of its own instead of the plot's.
      layout.height += 30 * entries;
      layout.legend.maxheight = 30 * entries + 10;
    }
    place.style.minHeight = `${layout.height}px`;
    if (coarse.matches) layout.dragmode = false; // a finger scrolls the page
    if (layout.yaxis.type === "log") {
      // Plotly would drop a line to the bottom of the world at zero.
      for (const trace of data) trace.y = trace.y.map((value) => (value > 0 ? value : null));
    }
    await Plotly.react(place, data, layout, config);
    place.dataset.drawn = "true";
  };

  const drawAll = async () => {
    for (const id of Object.keys(figures)) await draw(id);
    document.documentElement.dataset.ready = "true";
  };

  const slider = document.getElementById("layer");
  const showLayer = (index) => {
    const frame = extras.frames[index];
    slider.value = index;
    document.getElementById("layer-shown").textContent = index;
    frame.y.forEach((y, side) => { figures.lines.data[side].y = y; });
    figures.lines.layout.shapes = frame.shapes;
    figures.lines.layout.annotations = frame.annotations;
    return draw("lines");
  };
  slider.addEventListener("input", () => showLayer(Number(slider.value)));

  const plan = document.getElementById("plan-choice");
  if (plan) {
    plan.addEventListener("change", () => {
      figures["rank-bars"] = extras.ranks[Number(plan.value)];
      draw("rank-bars");
    });
  }

  for (const button of document.querySelectorAll("input[name=pareto-scale]")) {
    button.addEventListener("change", () => {
      const axis = figures["pareto-curve"].layout.yaxis;
      axis.type = button.value;
      if (button.value === "log") axis.dtick = 1;
      else delete axis.dtick;
      draw("pareto-curve");
    });
  }

  drawAll().then(() => {
    for (const place of document.querySelectorAll("[id^=heat-]")) {
      place.on("plotly_click", (event) => showLayer(event.points[0].y));
    }
  });
  dark.addEventListener("change", drawAll);
  const narrow = window.matchMedia("(max-width: 34rem)");
  narrow.addEventListener("change", drawAll);
})();
