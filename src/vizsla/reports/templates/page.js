// Draws the figures in the page's own colours, and again when those, or the room, change.
(() => {
  "use strict";
  const root = document.documentElement;
  const narrow = matchMedia("(max-width: 40rem)");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const config = {
    responsive: true,
    displaylogo: false,
    typesetMath: false, // a class may be called $x^2$
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
  };
  const series = [
    "#b3541e", "#3d7a94", "#7d8b35", "#8b5a8c", "#c2922b", "#4f8f77", "#7d6f63", "#c0697c",
  ];
  const figures = [...document.querySelectorAll(".figure")].map((place) => {
    const source = place.querySelector("script").textContent;
    const height = source.match(/"height":(\d+)/)?.[1]; // its room is kept until it is drawn
    if (height) place.style.minHeight = `${height}px`;
    place.replaceChildren();
    return { place, source };
  });

  // Dark on light becomes light on dark: what stood out still does, in the same hue.
  const pen = document.createElement("canvas").getContext("2d");
  const turnedColour = (text) => {
    pen.fillStyle = "#010203";
    pen.fillStyle = text; // what is no colour leaves the old one
    if (pen.fillStyle === "#010203") return text;
    const hex = pen.fillStyle.match(/^#(..)(..)(..)$/)?.slice(1).map((part) => parseInt(part, 16));
    const [red, green, blue, alpha = 1] = hex ?? pen.fillStyle.match(/[\d.]+/g).map(Number);
    const shift = 255 - Math.max(red, green, blue) - Math.min(red, green, blue);
    const turned = [red, green, blue].map((part) => Math.round(40 + 0.8 * (part + shift)));
    return `rgba(${turned.join(",")},${alpha})`;
  };
  const turned = (value, key = "") => {
    if (Array.isArray(value)) return value.map((item) => turned(item, key));
    if (value && typeof value === "object") {
      const entries = Object.entries(value).map(([name, item]) => [name, turned(item, name)]);
      return Object.fromEntries(entries);
    }
    return typeof value === "string" && /color/i.test(key) ? turnedColour(value) : value;
  };

  const axes = (layout) => Object.keys(layout).filter((key) => /^[xy]axis\d*$/.test(key));
  const colourBars = (data, layout) =>
    [...data.flatMap((trace) => [trace, trace.marker, trace.line]), layout.coloraxis]
      .map((owner) => owner?.colorbar)
      .filter(Boolean);

  // In the page's font and colours, which the style sheet alone declares.
  const dress = (data, layout) => {
    const own = getComputedStyle(root);
    const colour = (name) => own.getPropertyValue(`--${name}`).trim();
    const font = { family: own.fontFamily, color: colour("ink") };
    const line = colour("line");
    const rules = { gridcolor: line, linecolor: line, zerolinecolor: line };
    const shared = layout.template.layout;
    for (const owner of [layout, shared]) {
      for (const key of axes(owner)) Object.assign(owner[key], rules);
    }
    for (const key of ["xaxis", "yaxis"]) {
      shared[key] = { ...shared[key], ...rules, exponentformat: "e" };
    }
    for (const bar of colourBars(data, layout)) {
      Object.assign(bar, { thickness: 12, outlinewidth: 0 });
    }
    layout.font = { ...layout.font, ...font };
    layout.paper_bgcolor = layout.plot_bgcolor = "rgba(0,0,0,0)";
    layout.hoverlabel = { bgcolor: colour("ground"), bordercolor: line, font };
    layout.modebar = {
      bgcolor: "rgba(0,0,0,0)",
      color: colour("muted"),
      activecolor: colour("accent"),
    };
    layout.uirevision = "kept"; // a zoom outlives a change of colours
  };

  // Panels side by side keep a width that can be read: the figure then scrolls, not the page.
  const fit = (place, data, layout) => {
    const across = axes(layout).filter((key) => key.startsWith("x"));
    const panels = new Set(across.map((key) => layout[key].domain?.[0] ?? 0)).size;
    const labels = Math.max(0, ...across.map((key) => layout[key].ticktext?.length ?? 0));
    const least = layout.meta?.least_rem ?? 0; // what the figure itself asks for
    const wanted = [panels > 1 ? panels * 11 : 0, Math.min(labels * 6, 36), least];
    place.style.minWidth = `${Math.max(...wanted)}rem`;
    delete layout.width;
    layout.autosize = true;
    if (!narrow.matches) return;
    layout.height ??= 400;
    layout.dragmode = false; // a finger scrolls the page
    if (data.length > 8) layout.showlegend = false; // names are still shown at a touch
    const above = { orientation: "h", x: 0, xanchor: "left", y: 1.02, yanchor: "bottom" };
    layout.legend = { ...layout.legend, ...above };
    for (const bar of colourBars(data, layout)) {
      Object.assign(bar, above, { thickness: 10, len: 1, xpad: 0, nticks: 5, tickangle: 0 });
      bar.title = { ...bar.title, side: "top" };
    }
    for (const { title } of axes(layout).map((key) => layout[key])) {
      if (title?.text) title.text = title.text.replace(/(.{18,}?)\s/g, "$1<br>");
    }
  };

  const drawOne = ({ place, source }) => {
    const turn = dark.matches && !root.classList.contains("paper");
    try {
      const figure = JSON.parse(source);
      const template = (((figure.layout ??= {}).template ??= {}).layout ??= {});
      template.colorway = series;
      const { data = [], layout } = turn ? turned(figure) : figure;
      dress(data, layout);
      fit(place, data, layout);
      Plotly.react(place, data, layout, config);
    } catch (error) {
      place.style.minHeight = "";
      place.classList.add("failed"); // one broken figure leaves the others standing
      console.error(error);
    }
  };

  const waiting = new Map(figures.map((figure) => [figure.place, figure]));
  const draw = () => {
    waiting.clear();
    figures.forEach(drawOne);
  };

  // At first what is in sight, or soon will be; the rest one by one, whenever there is time.
  const drawFirst = () => {
    const take = (place) => {
      const figure = waiting.get(place);
      if (!waiting.delete(place)) return;
      drawOne(figure);
    };
    const nearby = new IntersectionObserver(
      (entries) => entries.filter((one) => one.isIntersecting).forEach((one) => take(one.target)),
      { rootMargin: "50%" },
    );
    const whenIdle = globalThis.requestIdleCallback ?? ((call) => setTimeout(call, 50));
    const next = () => {
      for (const place of waiting.keys()) {
        take(place);
        whenIdle(next);
        return;
      }
    };
    for (const place of waiting.keys()) nearby.observe(place);
    whenIdle(next);
  };

  const onPaper = (paper) => () => {
    root.classList.toggle("paper", paper);
    draw();
  };

  drawFirst();
  dark.addEventListener("change", draw);
  narrow.addEventListener("change", () => {
    for (const { place } of figures) Plotly.purge(place); // a colour bar that turns leaves remains
    draw();
  });
  addEventListener("beforeprint", onPaper(true));
  addEventListener("afterprint", onPaper(false));
})();
