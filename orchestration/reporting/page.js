"use strict";
(() => {
  const root = document.documentElement;
  const colours = () => {
    const style = getComputedStyle(root);
    return (name) => style.getPropertyValue("--" + name).trim() || name;
  };
  // "@accent" anywhere in a figure is a colour of the style sheet.
  const resolved = (value, colour) => {
    if (typeof value === "string") return /^@[a-z0-9]+$/.test(value) ? colour(value.slice(1)) : value;
    if (Array.isArray(value)) return value.map((one) => resolved(one, colour));
    if (value && typeof value === "object")
      return Object.fromEntries(Object.entries(value).map(([key, one]) => [key, resolved(one, colour)]));
    return value;
  };
  const config = { responsive: true, displaylogo: false, displayModeBar: false, scrollZoom: false };

  const draw = (figure) => {
    const place = figure.querySelector(".chart");
    const { data, layout, linked } = JSON.parse(figure.querySelector("script.figure").textContent);
    const colour = colours();
    const { data: traces, layout: frame } = resolved({ data, layout }, colour);
    frame.font = { family: getComputedStyle(document.body).fontFamily, size: 12, color: colour("soft"), ...frame.font };
    frame.paper_bgcolor = frame.plot_bgcolor = "rgba(0,0,0,0)";
    frame.hoverlabel = { bgcolor: colour("paper"), bordercolor: colour("faint"), font: { color: colour("ink") } };
    frame.height = parseFloat(getComputedStyle(place).getPropertyValue("--height"));
    frame.autosize = true;
    const first = !place.classList.contains("drawn");
    const done = Plotly.react(place, traces, frame, config);
    place.classList.add("drawn");
    if (linked && first) {
      const last = traces.length - 1;
      place.on("plotly_hover", (event) => {
        const trial = event.points[0].customdata;
        const x = [], y = [];
        place.data.slice(0, last).forEach((trace) => (trace.customdata || []).forEach((number, at) => {
          if (number === trial && trace.y[at] !== null) { x.push(trace.x[at]); y.push(trace.y[at]); }
        }));
        Plotly.restyle(place, { x: [x], y: [y] }, [last]);
      });
      place.on("plotly_unhover", () => Plotly.restyle(place, { x: [[]], y: [[]] }, [last]));
    }
    return done;
  };
  const shown = () => [...document.querySelectorAll("figure:has(script.figure)")].filter((one) => one.offsetParent !== null);
  const drawAll = () => Promise.all(shown().map(draw));

  // Radio buttons named step and objective choose which of the figures marked so are shown.
  const choose = () => {
    const chosen = {};
    document.querySelectorAll("fieldset.choose input:checked").forEach((input) => { chosen[input.name] = input.value; });
    document.querySelectorAll("[data-step], [data-objective]").forEach((one) => {
      one.hidden = ["step", "objective"].some((key) => one.dataset[key] !== undefined && one.dataset[key] !== chosen[key]);
    });
    return drawAll();
  };
  document.querySelectorAll("fieldset.choose").forEach((one) => one.addEventListener("change", choose));

  document.querySelectorAll("table.sortable").forEach((table) => {
    const body = table.tBodies[0];
    table.querySelectorAll("th button").forEach((button) => button.addEventListener("click", () => {
      const head = button.closest("th");
      const ascending = head.getAttribute("aria-sort") !== "ascending";
      table.querySelectorAll("th").forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
      const key = (row) => row.cells[head.cellIndex].dataset.sort ?? row.cells[head.cellIndex].textContent;
      const compare = (one, other) => {
        const [a, b] = [key(one), key(other)];
        if ((a === "") !== (b === "")) return a === "" ? 1 : -1;  // what is missing stays last
        const [x, y] = [Number(a), Number(b)];
        const order = Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b) : x - y;
        return ascending ? order : -order;
      };
      body.append(...[...body.rows].sort(compare));
    }));
  });

  // Words typed into a filter leave the rows that hold them all.
  document.querySelectorAll("input.filter").forEach((input) => input.addEventListener("input", () => {
    const words = input.value.toLowerCase().split(/\s+/);
    document.querySelectorAll("table.sortable tbody tr").forEach((row) => {
      const told = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => told.includes(word));
    });
  }));

  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  addEventListener("beforeprint", () => { root.classList.add("paper"); drawAll(); });
  addEventListener("afterprint", () => { root.classList.remove("paper"); drawAll(); });
  choose().then(() => { document.body.dataset.drawn = String(document.querySelectorAll(".chart.drawn").length); });
})();
