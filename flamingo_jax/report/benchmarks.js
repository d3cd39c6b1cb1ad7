// Queries of a benchmark: a setting is chosen, rows are ordered and filtered, and some are drawn.

const DRAWN = 24; // cards at once
const [KEY, PICTURE, QUESTION, CONTEXT, REFERENCES, RIGHT] = [0, 1, 2, 3, 4, 5]; // of an item
const [ITEM, ANSWER, SCORE, TEXT, LIKELIEST, SHOTS] = [0, 1, 2, 3, 4, 5]; // of a row

function choice(label, options) {
  const select = element("select");
  options.forEach(([value, text]) => {
    const option = element("option", text);
    option.value = value;
    select.append(option);
  });
  const whole = element("label", label);
  whole.append(select);
  return { whole, select };
}

function image(item) {
  const missing = () => element("span", "no picture", "no-picture");
  if (!item[PICTURE]) return missing();
  const picture = element("img");
  picture.loading = "lazy";
  picture.alt = item[QUESTION] || item[KEY];
  picture.addEventListener("error", () => picture.replaceWith(missing()));
  picture.src = item[PICTURE];
  return picture;
}

// What an answer is worth: its score, or, where one query alone has none, whether it is right.
function worth(row, items) {
  if (row[SCORE] !== null) return row[SCORE];
  const right = items[row[ITEM]][RIGHT];
  return right === null ? null : row[ANSWER] === right ? 100 : 0;
}

function shotLine(item) {
  const line = element("li");
  if (item[PICTURE]) line.append(image(item));
  const text = element("span");
  const said = item[RIGHT] || item[REFERENCES][0] || "";
  if (item[QUESTION]) text.append(`${item[QUESTION]} `);
  if (said) text.append(element("b", said), " ");
  text.append(element("small", item[KEY]));
  line.append(text);
  return line;
}

function shotList(row, items) {
  const folded = element("details");
  const count = row[SHOTS].length;
  folded.append(element("summary", count === 1 ? "1 shot" : `${count} shots`));
  folded.addEventListener("toggle", () => {
    if (folded.childElementCount > 1) return;
    const list = element("ol");
    list.append(...row[SHOTS].map((place) => shotLine(items[place])));
    folded.append(list);
  });
  return folded;
}

function badge(row, data) {
  const value = worth(row, data.items);
  if (value === null) return element("span", "not scored", "score tag");
  const text = row[SCORE] === null ? (value ? "right" : "wrong") : value.toFixed(1);
  const made = element("span", text, `score tag${value >= 100 ? " best" : value <= 0 ? " worst" : ""}`);
  made.title = row[SCORE] === null ? "the answer beside the right one" : data.figure;
  return made;
}

function truths(item) {
  const line = element("p", undefined, "truth");
  if (item[RIGHT]) line.append("right: ", element("b", item[RIGHT]));
  const others = item[REFERENCES].filter((text) => text !== item[RIGHT]);
  if (others.length) line.append(item[RIGHT] ? "; references: " : "references: ", others.join(" · "));
  return line;
}

function card(row, data) {
  const item = data.items[row[ITEM]];
  const made = element("article", undefined, "query");
  const body = element("div", undefined, "query-body");
  body.append(badge(row, data));
  if (item[CONTEXT]) body.append(element("p", item[CONTEXT], "context"));
  if (item[QUESTION]) body.append(element("p", item[QUESTION], "question"));
  body.append(element("p", row[ANSWER] || "(nothing)", "said"));
  if (row[LIKELIEST].length) {
    const list = element("div", undefined, "likeliest");
    for (const [name, score] of row[LIKELIEST]) {
      list.append(element("span", name, name === item[RIGHT] ? "right" : ""), element("span", score.toFixed(2)));
    }
    body.append(list);
  }
  if (row[TEXT]) body.append(element("p", `generated: ${row[TEXT]}`, "raw"));
  if (item[RIGHT] || item[REFERENCES].length) body.append(truths(item));
  if (row[SHOTS].length) body.append(shotList(row, data.items));
  body.append(element("p", item[KEY], "key"));
  made.append(image(item), body);
  return made;
}

function header(cells) {
  const row = element("tr");
  row.append(...cells.map((text) => {
    const cell = element("th");
    cell.append(element("span", text));
    return cell;
  }));
  const head = element("thead");
  head.append(row);
  return head;
}

// Rows are right classes, columns given ones; a cell's colour is its share of the row.
function classTable(setting) {
  const made = element("table", undefined, "confused");
  const body = element("tbody");
  const counts = setting.classes.map(() => new Map());
  for (const [right, given, count] of setting.cells) counts[right].set(given, count);
  setting.classes.forEach((name, right) => {
    const total = [...counts[right].values()].reduce((sum, count) => sum + count, 0);
    if (!total) return;
    const row = element("tr");
    row.append(element("th", name));
    setting.classes.forEach((other, given) => {
      const count = counts[right].get(given) || 0;
      const cell = element("td", count || "", given === right ? "same" : "");
      if (count) cell.style.setProperty("--share", `${Math.round(12 + (68 * count) / total)}%`);
      cell.title = `${name} taken for ${other}: ${count} of ${total}`;
      row.append(cell);
    });
    body.append(row);
  });
  made.append(header(["", ...setting.classes]), body);
  return made;
}

function pairTable(setting) {
  const made = element("table", undefined, "pairs");
  const body = element("tbody");
  for (const cells of setting.pairs) {
    const row = element("tr");
    row.append(...cells.map((text) => element("td", text)));
    body.append(row);
  }
  made.append(header(["right", "taken for", "times"]), body);
  return made;
}

function drawConfusion(place, setting) {
  if (!setting.cells && !setting.pairs) { place.replaceChildren(); return; }
  const was = place.querySelector("details");
  const folded = element("details");
  folded.open = was ? was.open : true;
  const title = setting.cells ? "Which class (row) was taken for which (column)" : "The most confused classes";
  const scroll = element("div", undefined, "scroll");
  scroll.append(setting.cells ? classTable(setting) : pairTable(setting));
  folded.append(element("summary", title), scroll);
  place.replaceChildren(folded);
}

function pager(turn) {
  const whole = element("div", undefined, "pager");
  const buttons = [["← before", -1], ["next →", 1]].map(([text, step]) => {
    const button = element("button", text);
    button.type = "button";
    button.addEventListener("click", () => turn(step));
    return button;
  });
  whole.append(...buttons);
  return { whole, buttons };
}

function setUpQueries(box) {
  const data = JSON.parse(box.querySelector("script.query-data").textContent);
  const cards = box.querySelector(".query-cards");
  const count = box.querySelector(".query-count");
  const settings = choice("Setting", data.settings.map((setting, place) => [place, setting.name]));
  const order = choice("Order", [["order", "as asked"], ["worst", "worst first"], ["best", "best first"]]);
  const search = element("input");
  search.type = "search";
  search.placeholder = "question, answer, reference, key";
  const find = element("label", "Find");
  find.append(search);
  box.querySelector(".query-controls").append(settings.whole, order.whole, find);
  let page = 0;

  const told = (row) => {
    const item = data.items[row[ITEM]];
    return [item[KEY], item[QUESTION], item[CONTEXT], ...item[REFERENCES], item[RIGHT], row[ANSWER], row[TEXT]]
      .join("\n").toLowerCase();
  };
  const chosen = () => {
    const wanted = search.value.trim().toLowerCase();
    const rows = data.settings[settings.select.value].rows.filter((row) => !wanted || told(row).includes(wanted));
    const sign = { worst: 1, best: -1 }[order.select.value];
    if (!sign) return rows;
    const last = sign * Infinity; // what is not scored comes at the end, either way
    const value = new Map(rows.map((row) => [row, worth(row, data.items) ?? last]));
    return rows.sort((a, b) => (value.get(a) === value.get(b) ? 0 : sign * (value.get(a) - value.get(b))));
  };
  const pages = [-1, 1].map(() => pager((step) => { page += step; draw(); }));
  const draw = () => {
    const rows = chosen();
    const last = Math.max(Math.ceil(rows.length / DRAWN) - 1, 0);
    page = Math.min(Math.max(page, 0), last);
    const part = rows.slice(page * DRAWN, (page + 1) * DRAWN);
    const from = page * DRAWN + 1;
    count.textContent = part.length ? `${from}–${from + part.length - 1} of ${rows.length}` : "No query holds that text.";
    cards.replaceChildren(...part.map((row) => card(row, data)));
    for (const { buttons } of pages) {
      for (const button of buttons) button.hidden = last === 0;
      buttons[0].disabled = page === 0;
      buttons[1].disabled = page === last;
    }
  };
  const restart = () => { page = 0; draw(); };
  settings.select.addEventListener("change", () => {
    drawConfusion(box.querySelector(".confusion"), data.settings[settings.select.value]);
    restart();
  });
  order.select.addEventListener("change", restart);
  search.addEventListener("input", restart);
  count.className = "query-count";
  pages[0].whole.append(count);
  cards.before(pages[0].whole);
  cards.after(pages[1].whole);
  drawConfusion(box.querySelector(".confusion"), data.settings[0]);
  draw();
}

document.querySelectorAll(".queries").forEach(setUpQueries);
