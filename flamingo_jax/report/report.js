"use strict";
// The page is complete without this script; it adds hover, hiding of lines, scales and filters.

const MOST_TOLD = 13; // lines in a tooltip

const four = (value) => {
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e4) return Math.round(value).toLocaleString("en");
  return size < 1e-3 ? value.toExponential(2) : String(Number(value.toPrecision(4)));
};

const element = (name, text, className) => {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
};

function nearest(values, wanted) {
  let best = -1;
  values.forEach((value, index) => {
    if (value !== null && (best < 0 || Math.abs(value - wanted) < Math.abs(values[best] - wanted))) best = index;
  });
  return best;
}

function setUpChart(figure) {
  const holder = figure.querySelector("script.chart-data");
  if (!holder) return;
  const facts = JSON.parse(holder.textContent);
  const plots = figure.querySelector(".plots");
  const cursor = figure.querySelector(".cursor");
  const hiddenNames = new Set();
  let scale = "linear";

  for (const button of figure.querySelectorAll("button[data-legend]")) {
    button.addEventListener("click", () => {
      const name = button.dataset.legend;
      const off = !hiddenNames.has(name);
      if (off) hiddenNames.add(name); else hiddenNames.delete(name);
      button.setAttribute("aria-pressed", String(!off));
      for (const path of figure.querySelectorAll("path[data-legend]")) {
        if (path.dataset.legend === name) path.classList.toggle("off", off);
      }
      cursor.hidden = true;
    });
  }

  const scaleButton = figure.querySelector(".scale-button");
  if (scaleButton) {
    scaleButton.addEventListener("click", () => {
      scale = scale === "linear" ? "log" : "linear";
      scaleButton.setAttribute("aria-pressed", String(scale === "log"));
      for (const plot of figure.querySelectorAll(".plot")) plot.hidden = plot.dataset.scale !== scale;
      cursor.hidden = true;
    });
  }

  const show = (event) => {
    const box = plots.getBoundingClientRect();
    const [left, right] = facts.x;
    const [low, high] = facts.scales[scale];
    const wanted = left + ((event.clientX - box.left) / box.width) * (right - left);
    const lines = facts.lines.filter((line) => !hiddenNames.has(line.legend));
    const known = lines.map((line) => {
      const finite = line.x.map((x, index) => (line.y[index] === null ? null : x));
      return { line, index: nearest(finite, wanted) };
    }).filter((found) => found.index >= 0);
    if (!known.length) { cursor.hidden = true; return; }
    const places = known.map((found) => found.line.x[found.index]);
    const x = places[nearest(places, wanted)];
    const across = (x - left) / (right - left);
    const tip = element("div", undefined, across > 0.5 ? "tip left" : "tip");
    tip.append(element("small", `${facts.xName} ${four(x)}`));
    cursor.replaceChildren(tip);
    const stride = Math.ceil(known.length / MOST_TOLD);
    const told = known.filter((_, place) => place % stride === 0 || place === known.length - 1);
    if (stride > 1) tip.append(element("div", `${told.length} of ${known.length} lines`));
    for (const { line, index } of told) {
      const y = line.y[index];
      const row = element("div");
      const swatch = element("i");
      swatch.style.background = line.color;
      row.append(swatch, element("span", line.name), element("em", four(y)));
      if (line.x[index] !== x) row.append(element("small", `at ${four(line.x[index])}`));
      else if (scale === "linear" || y > 0) {
        const dot = element("b");
        const value = scale === "log" ? Math.log10(y) : y;
        dot.style.top = `${(1 - (value - low) / (high - low)) * 100}%`;
        dot.style.background = line.color;
        cursor.append(dot);
      }
      tip.append(row);
    }
    cursor.style.left = `${across * 100}%`;
    cursor.hidden = false;
    const place = tip.getBoundingClientRect();
    const over = Math.max(0, place.right - window.innerWidth + 4) + Math.min(0, place.left - 4);
    tip.style.transform = `translateX(${-over}px)`;
  };
  plots.addEventListener("pointermove", show);
  plots.addEventListener("pointerdown", show);
  plots.addEventListener("pointerleave", () => { cursor.hidden = true; });
}

function setUpGallery(gallery) {
  const chosen = { group: "", correct: "", sort: "order" };
  const orders = {
    order: (a, b) => a.dataset.order - b.dataset.order,
    wrong: (a, b) => a.dataset.correct - b.dataset.correct || a.dataset.order - b.dataset.order,
    truth: (a, b) => a.dataset.truth.localeCompare(b.dataset.truth) || a.dataset.order - b.dataset.order,
  };
  const apply = () => {
    for (const group of gallery.querySelectorAll(".sample-group")) {
      const cards = [...group.querySelectorAll(".sample")].sort(orders[chosen.sort]);
      for (const card of cards) card.hidden = chosen.correct !== "" && card.dataset.correct !== chosen.correct;
      group.querySelector(".samples").append(...cards);
      group.hidden = (chosen.group !== "" && group.dataset.group !== chosen.group) || cards.every((card) => card.hidden);
    }
  };
  for (const select of gallery.querySelectorAll("select")) {
    select.addEventListener("change", () => { chosen[select.dataset.filter] = select.value; apply(); });
  }
}

function setUpPage(drawing) {
  const pictures = drawing.querySelectorAll(".medium, .row-medium");
  const tokens = drawing.querySelectorAll(".token[data-medium]");
  const follow = (part, others) => {
    const light = (on) => {
      for (const other of others) {
        if (other.dataset.medium === part.dataset.medium) other.classList.toggle("lit", on);
      }
    };
    part.addEventListener("pointerenter", () => light(true));
    part.addEventListener("pointerleave", () => light(false));
  };
  for (const picture of pictures) follow(picture, [...pictures, ...tokens]);
  for (const token of tokens) follow(token, pictures);
}

document.querySelectorAll(".chart").forEach(setUpChart);
document.querySelectorAll(".gallery").forEach(setUpGallery);
document.querySelectorAll(".page-drawing").forEach(setUpPage);
