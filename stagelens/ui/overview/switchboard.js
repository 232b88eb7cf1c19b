// The switchboard: stages as switches above a wall of examples, a number and bars.
//
// Everything that any known combination of switches shows is in `data`, so a switch answers here,
// without the server, which is told afterwards. Words from data are set as text, never as markup.

const SVG = "http://www.w3.org/2000/svg";
const COUNTING = 600; // milliseconds in which the number counts
const boards = new WeakMap();

export default function (component) {
  const root = component.parentElement;
  let board = boards.get(root);
  if (board === undefined) {
    board = makeBoard(root.querySelector(".board"));
    boards.set(root, board);
  }
  // Nothing to clean up: counting ends by itself, and must go on when the server answers meanwhile.
  board.show(component);
}

function made(tag, kind, text) {
  const one = document.createElement(tag);
  if (kind) one.className = kind;
  if (text !== undefined) one.textContent = text;
  return one;
}

const still = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

function makeBoard(place) {
  const board = { place, frame: 0, key: null, off: new Set(), shown: NaN };

  board.show = (component) => {
    board.component = component;
    const data = component.data;
    const same = board.key === data.key;
    // What is off is known here, and is no reason to draw everything again.
    const told = JSON.stringify({ ...data, off: null });
    if (same && told === board.told) return;
    board.data = data;
    board.told = told;
    // What was switched here is newer than what the server heard of.
    if (!same) board.off = new Set(data.off);
    board.key = data.key;
    // Links say what is off, so they are made anew; whoever goes by keys stays where they were.
    const places = () => [...place.querySelectorAll("button, a")];
    const at = same ? places().indexOf(place.getRootNode().activeElement) : -1;
    build(board);
    update(board, false);
    if (at >= 0) places()[at]?.focus({ preventScroll: true });
  };
  return board;
}

const keyOf = (off) => [...off].sort((a, b) => a - b).join(",");

// ------------------------------------------------------------------------------------- drawing

function build(board) {
  const { data, place } = board;
  const find = (kind) => place.querySelector(kind);
  place.style.setProperty("--card", `${data.card}px`);
  find(".title").textContent = data.title;
  find(".ways").replaceChildren(...data.ways.map((way) => wayTo(board, way)));
  const strip = find(".strip");
  strip.classList.toggle("many", data.compact);
  strip.replaceChildren(...data.stages.map((stage, at) => switchOf(board, stage, at)));
  find(".about").textContent = data.about;
  find(".sampled").textContent = data.sampled;
  const wall = find(".wall");
  wall.className = `wall ${data.kind}`;
  board.cards = data.cards.map((card) => cardOf(card));
  wall.replaceChildren(...board.cards.map((card) => card.item));
  if (board.cards.length) board.cards[0].link.tabIndex = 0;
  wall.onkeydown = (event) => move(board, event);
  find(".bars-title").textContent = data.bars.title;
  find(".bars").replaceChildren(...data.bars.rows.map((row) => barOf(board, row)));
  find(".worse").textContent = data.bars.worse;
  find(".better").textContent = data.bars.better;
  find(".more").textContent = data.bars.more;
  find(".bars-box").hidden = !data.bars.rows.length;
}

function wayTo(board, way) {
  const one = made("button", "way", way.text);
  one.type = "button";
  one.setAttribute("aria-pressed", String(way.chosen));
  one.onclick = () => board.component.setTriggerValue("wall", way.to);
  return one;
}

function switchOf(board, stage, at) {
  const one = made("button", "switch");
  one.type = "button";
  one.setAttribute("role", "switch");
  one.setAttribute("aria-label", stage.about ? `${stage.name}: ${stage.about}` : stage.name);
  one.title = stage.about;
  one.style.setProperty("--stage", stage.color);
  const head = made("span", "head");
  head.append(made("span", "mark", String(at + 1)), made("span", "name", stage.name));
  head.append(made("span", "knob"));
  one.append(head, made("span", "data", stage.about));
  const foot = made("span", "foot");
  foot.append(sparkline(stage), made("span", "rate", stage.rate));
  one.append(foot);
  one.onclick = () => {
    if (board.off.has(at)) board.off.delete(at);
    else board.off.add(at);
    update(board, true);
    const names = [...board.off].sort((a, b) => a - b).map((place) => board.data.stages[place].name);
    board.component.setStateValue("off", names);
  };
  return one;
}

function sparkline(stage) {
  const drawing = document.createElementNS(SVG, "svg");
  drawing.setAttribute("viewBox", "0 0 100 20");
  drawing.setAttribute("preserveAspectRatio", "none");
  drawing.setAttribute("aria-hidden", "true");
  if (stage.spark.length) {
    const step = 100 / Math.max(stage.spark.length - 1, 1);
    const points = stage.spark.map((rate, at) => `${(at * step).toFixed(1)},${(19 - 18 * rate).toFixed(1)}`);
    if (points.length === 1) points.push(`100,${points[0].split(",")[1]}`);
    const area = document.createElementNS(SVG, "polygon");
    area.setAttribute("points", `0,20 ${points.join(" ")} 100,20`);
    const line = document.createElementNS(SVG, "polyline");
    line.setAttribute("points", points.join(" "));
    drawing.append(area, line);
  }
  return drawing;
}

function linked(kind, href) {
  const link = made("a", kind);
  link.href = href;
  return link;
}

function cardOf(card) {
  const item = made("li");
  const link = linked("card", card.href);
  link.tabIndex = -1;
  if (card.picture) {
    const picture = made("img");
    picture.src = card.picture;
    picture.alt = "";
    link.append(picture);
  } else link.append(made("span", "text", card.text));
  const says = made("span", "says");
  link.append(says);
  item.append(link);
  return { item, link, says, ...card };
}

function barOf(board, row) {
  const item = made("li");
  const link = linked(`bar ${row.side}${row.faint ? " faint" : ""}`, row.href);
  link.title = row.said;
  link.setAttribute("aria-label", `${row.said}. ${board.data.bars.open}`);
  const name = made("span", "bar-name");
  name.append(made("bdi", "", row.stage), made("span", "bar-trust", ` ${row.trust}`));
  const track = made("span", "track");
  const fill = made("span", "fill");
  fill.style.width = `${50 * Math.min(Math.abs(row.share), 1)}%`;
  fill.style[row.share < 0 ? "right" : "left"] = "50%";
  track.append(fill);
  if (row.low !== null) {
    const whisker = made("span", "whisker");
    whisker.style.left = `${50 + 50 * row.low}%`;
    whisker.style.width = `${50 * (row.high - row.low)}%`;
    track.append(whisker);
  }
  link.append(name, made("span", "amount", row.amount), track);
  item.append(link);
  return item;
}

// Arrow keys go from card to card; one of them can be reached by the tab key.
function move(board, event) {
  const links = board.cards.map((card) => card.link);
  const at = links.indexOf(event.target);
  if (at < 0) return;
  const top = links[0].offsetTop;
  const across = links.filter((link) => link.offsetTop === top).length || 1;
  const by = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: across, ArrowUp: -across }[event.key];
  if (by === undefined) return;
  event.preventDefault();
  const next = links[at + by];
  if (next === undefined) return;
  links[at].tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
}

// ----------------------------------------------------------------------------- what is switched

function update(board, switched) {
  const { data, place } = board;
  const model = data.models[keyOf(board.off)];
  const find = (kind) => place.querySelector(kind);
  find(".strip").childNodes.forEach((one, at) => {
    one.setAttribute("aria-checked", String(!board.off.has(at)));
  });
  place.classList.toggle("unknown", model === undefined || !model.known);
  const shown = model || unknown(board);
  find(".interval").textContent = shown.interval;
  find(".seal").textContent = shown.seal;
  find(".seal").title = shown.why;
  find(".seal").setAttribute("aria-label", `${shown.seal}. ${shown.why}`);
  find(".seal").hidden = !shown.seal;
  find(".said").textContent = shown.said;
  gauge(board, shown);
  count(board, shown, switched && !still());
  turn(board, shown, switched && !still());
  if (switched) find(".told").textContent = `${shown.text}. ${shown.said}`;
}

function unknown(board) {
  const names = [...board.off].sort((a, b) => a - b).map((at) => board.data.stages[at].name);
  return {
    known: false, value: null, text: "not computed", interval: "", seal: "", why: "",
    said: board.data.unknown.replace("{stages}", names.join(" and ")), low: null, high: null,
  };
}

function gauge(board, shown) {
  const [least, most] = board.data.range;
  const at = (value) => `${(100 * (value - least)) / (most - least || 1)}%`;
  const put = (kind, value) => {
    const one = board.place.querySelector(kind);
    one.hidden = value === null;
    if (value !== null) one.style.left = at(value);
    return one;
  };
  put(".gauge-now", shown.value);
  put(".gauge-final", board.data.models[""].value);
  const band = put(".gauge-band", shown.low);
  if (shown.low !== null) band.style.width = `calc(${at(shown.high)} - ${at(shown.low)})`;
}

function count(board, shown, moving) {
  const number = board.place.querySelector(".number");
  cancelAnimationFrame(board.frame);
  const from = board.shown;
  board.shown = shown.value === null ? NaN : shown.value;
  if (!moving || shown.value === null || !Number.isFinite(from) || from === shown.value) {
    number.textContent = shown.text;
    return;
  }
  const began = performance.now();
  const { scale, digits, unit } = board.data.format;
  const step = (now) => {
    const done = Math.min((now - began) / COUNTING, 1);
    const eased = 1 - (1 - done) ** 3;
    const value = scale * (from + eased * (shown.value - from));
    // At the end, the number as the server has rounded it.
    number.textContent = done < 1 ? `${value.toFixed(digits).replace("-", "−")}${unit}` : shown.text;
    if (done < 1) board.frame = requestAnimationFrame(step);
  };
  board.frame = requestAnimationFrame(step);
}

// Of what the final model answers, no more than fits before another answer.
const leading = (answer) => (answer !== null && answer.length <= 2 ? answer : "");

function turn(board, shown, moving) {
  const { data } = board;
  const first = data.models[""];
  board.cards.forEach((card, at) => {
    const answer = shown.answers ? data.answers[shown.answers[at]] : null;
    const before = first.answers ? data.answers[first.answers[at]] : null;
    const verdict = shown.right ? ["wrong", "right", "none"][shown.right[at]] : "none";
    const kind = shown.known ? verdict : "dark";
    const changed = shown.known && answer !== before;
    const mark = { right: "✓", wrong: "✗" }[kind] || "";
    const value = shown.values ? shown.values[at] : "";
    const said = data.tinted ? value : changed ? `${leading(before)}→${answer}` : answer;
    const words = shown.known ? [said, mark].filter(Boolean).join(" ") : "?";
    const tint = shown.tints ? shown.tints[at] : 0;
    const look = `${kind} ${words} ${tint}`;
    if (look === card.look) return;
    const turned = card.look !== undefined && (card.kind !== kind || data.tinted);
    card.look = look;
    card.kind = kind;
    card.link.className = `card ${kind}${data.tinted ? " tinted" : ""}`;
    card.link.style.setProperty("--tint", `${Math.round(100 * Math.min(Math.abs(tint), 1))}%`);
    card.link.classList.toggle("below", tint < 0);
    card.says.textContent = words;
    const told = [card.id];
    if (card.label !== null) told.push(`label ${card.label}`);
    if (shown.known && answer !== null) told.push(`says ${answer}${mark ? `, ${kind}` : ""}`);
    if (changed && before !== null) told.push(`the final model says ${before}`);
    if (data.tinted && shown.known) told.push(`${data.behaviour} ${value}`);
    card.link.title = told.join("; ");
    card.link.setAttribute("aria-label", told.join("; "));
    if (moving && turned) {
      card.link.animate(
        [{ transform: "rotateY(90deg)" }, { transform: "rotateY(0)" }],
        { duration: 320, delay: 3 * at, easing: "ease-out", fill: "backwards" },
      );
    }
  });
}
