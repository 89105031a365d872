// Gives every figure the page's own ground, light or dark, and draws it.
(() => {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const narrow = matchMedia("(max-width: 640px)");
  const config = {
    responsive: true,
    displaylogo: false,
    displayModeBar: "hover",
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
  };

  const charts = [...document.querySelectorAll(".chart")].map((chart) => ({
    node: chart.querySelector(".plot"),
    figure: JSON.parse(chart.querySelector("script").textContent),
  }));

  function dressed(layout) {
    const css = getComputedStyle(document.documentElement);
    const colour = (name) => css.getPropertyValue(name).trim();
    const small = narrow.matches;
    const worn = structuredClone(layout);
    Object.assign(worn, {
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: css.getPropertyValue("--sans"), size: small ? 11 : 12.5, color: colour("--muted") },
      hoverlabel: {
        ...worn.hoverlabel,
        bgcolor: colour("--raised"),
        bordercolor: colour("--line"),
        font: { color: colour("--ink"), size: 12 },
      },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: colour("--muted"), activecolor: colour("--ink") },
    });
    worn.legend = { ...worn.legend, font: { color: colour("--ink") } };
    worn.margin = { ...worn.margin, l: small ? 52 : 72, r: small ? 4 : 12 };
    for (const [name, axis] of Object.entries(worn)) {
      if (!/^[xy]axis\d*$/.test(name)) continue;
      Object.assign(axis, { gridcolor: colour("--line"), linecolor: colour("--line"), tickcolor: colour("--line") });
      if (name.startsWith("x")) Object.assign(axis, { showline: true, ticks: "outside", ticklen: 4 });
      if (axis.title) axis.title = { ...axis.title, standoff: 8, ...(small ? { text: "" } : {}) };
    }
    for (const note of worn.annotations ?? []) {
      if (note.name === "watermark") note.font = { ...note.font, size: small ? 34 : 72, color: colour("--ink") };
    }
    return worn;
  }

  const draw = () => charts.forEach(({ node, figure }) => Plotly.react(node, figure.data, dressed(figure.layout), config));
  draw();
  dark.addEventListener("change", draw);
  narrow.addEventListener("change", draw);

  // Paper is white whatever the screen is.
  addEventListener("beforeprint", () => { document.documentElement.dataset.paper = ""; draw(); });
  addEventListener("afterprint", () => { delete document.documentElement.dataset.paper; draw(); });
})();
