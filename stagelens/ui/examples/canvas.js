// The canvas: cells of an image's size, painted by mouse, finger or keys.
//
// What is painted is known here, and sent once a stroke has ended; the server sends cells only to
// begin with something else. Words from data are set as text, never as markup.

const MOST_UNDONE = 50;
const pads = new WeakMap();

export default function (component) {
  const root = component.parentElement;
  let pad = pads.get(root);
  if (pad === undefined) {
    pad = makePad(root.querySelector(".pad"));
    pads.set(root, pad);
  }
  pad.component = component;
  show(pad, component.data);
}

function makePad(place) {
  const find = (kind) => place.querySelector(kind);
  const pad = {
    place, find, sheet: find(".sheet"), erasing: false, before: [], last: null, at: [0, 0],
    number: 0, from: undefined,
  };
  for (const [kind, erasing] of [[".draw", false], [".erase", true]]) {
    find(kind).onclick = () => choose(pad, erasing);
  }
  find(".undo").onclick = () => undo(pad);
  find(".clear").onclick = () => change(pad, () => pad.cells.fill(0), "Cleared");
  for (const [y, x] of [["top", "left"], ["top", "right"], ["bottom", "left"], ["bottom", "right"]]) {
    const one = document.createElement("button");
    one.type = "button";
    one.className = `${y} ${x}`;
    one.title = `Stamp the ${y} ${x} corner`;
    one.setAttribute("aria-label", one.title);
    one.onclick = () => change(pad, () => stamp(pad, y, x), `The ${y} ${x} corner is stamped`);
    find(".corners").append(one);
  }
  startFrom(pad);
  const { sheet } = pad;
  sheet.onpointerdown = (event) => begin(pad, event);
  sheet.onpointermove = (event) => go(pad, event);
  sheet.onpointerup = sheet.onpointercancel = () => end(pad);
  sheet.onkeydown = (event) => key(pad, event);
  sheet.onfocus = () => place_cursor(pad, sheet.matches(":focus-visible"));
  sheet.onblur = () => place_cursor(pad, false);
  return pad;
}

// ------------------------------------------------------------------------------------- what is shown

function show(pad, data) {
  const { find, sheet } = pad;
  const shape = `${data.height},${data.width},${data.channels},${data.white}`;
  if (pad.shape !== shape) {
    pad.shape = shape;
    Object.assign(pad, { height: data.height, width: data.width, channels: data.channels, white: data.white });
    pad.canvas = find("canvas");
    pad.canvas.width = data.width;
    pad.canvas.height = data.height;
    const colors = data.channels === 3;
    find(".grey").hidden = colors;
    find(".color").hidden = !colors;
    Object.assign(find(".grey"), { min: 1, max: data.white, value: data.white });
    find(".color").value = "#ffffff";
    const shorter = Math.min(data.width, data.height);
    find(".wide").hidden = shorter < 12;
    Object.assign(find(".width"), { max: Math.max(Math.round(shorter / 6), 1), value: Math.max(Math.round(shorter / 14), 1) });
    // Lines between cells, where cells are large enough to be told apart.
    const line = "color-mix(in srgb, #888 55%, transparent)";
    find(".lines").style.cssText = data.width > 32 ? "" : `background: linear-gradient(to right, ${line} 1px, transparent 1px) 0 0 / ${100 / data.width}% 100%, linear-gradient(${line} 1px, transparent 1px) 0 0 / 100% ${100 / data.height}%`;
    sheet.setAttribute("aria-label", `Drawing of ${data.width} by ${data.height} cells`);
    pad.from = undefined;
  }
  // What was painted here is newer than what the server heard of.
  if (pad.from === data.from) return;
  pad.from = data.from;
  pad.before = [];
  pad.cells = Uint8Array.from(atob(data.cells), (one) => one.charCodeAt(0));
  paint(pad);
}

function paint(pad) {
  const context = pad.canvas.getContext("2d");
  const image = context.createImageData(pad.width, pad.height);
  const count = pad.width * pad.height;
  for (let at = 0; at < count; at++) {
    for (let channel = 0; channel < 3; channel++) {
      const value = pad.cells[pad.channels === 1 ? at : 3 * at + channel];
      image.data[4 * at + channel] = Math.round((255 * value) / pad.white);
    }
    image.data[4 * at + 3] = 255;
  }
  context.putImageData(image, 0, 0);
}

function place_cursor(pad, visible) {
  const cursor = pad.find(".cursor");
  cursor.hidden = !visible;
  const [x, y] = pad.at;
  cursor.style.cssText = `left:${(100 * x) / pad.width}%;top:${(100 * y) / pad.height}%;width:${100 / pad.width}%;height:${100 / pad.height}%`;
}

const tell = (pad, text) => { pad.find(".told").textContent = text; };

function choose(pad, erasing) {
  pad.erasing = erasing;
  pad.find(".draw").setAttribute("aria-pressed", String(!erasing));
  pad.find(".erase").setAttribute("aria-pressed", String(erasing));
}

// ------------------------------------------------------------------------------------- what is painted

function ink(pad, erasing) {
  if (erasing) return Array(pad.channels).fill(0);
  if (pad.channels === 1) return [Number(pad.find(".grey").value)];
  const color = pad.find(".color").value;
  return [1, 3, 5].map((at) => Math.round((parseInt(color.slice(at, at + 2), 16) * pad.white) / 255));
}

function fill(pad, left, top, width, height, values) {
  for (let y = Math.max(top, 0); y < Math.min(top + height, pad.height); y++) {
    for (let x = Math.max(left, 0); x < Math.min(left + width, pad.width); x++) {
      pad.cells.set(values, pad.channels * (y * pad.width + x));
    }
  }
}

function dab(pad, x, y, erasing) {
  const wide = pad.find(".wide").hidden ? 1 : Number(pad.find(".width").value);
  const back = Math.floor((wide - 1) / 2);
  fill(pad, x - back, y - back, wide, wide, ink(pad, erasing));
}

function stamp(pad, y, x) {
  const side = Math.max(Math.round(Math.min(pad.width, pad.height) / 4), 1);
  const left = x === "left" ? 0 : pad.width - side;
  const top = y === "top" ? 0 : pad.height - side;
  fill(pad, left, top, side, side, ink(pad, false));
}

function keep(pad) {
  pad.before.push(pad.cells.slice());
  if (pad.before.length > MOST_UNDONE) pad.before.shift();
}

function change(pad, how, said) {
  keep(pad);
  how();
  paint(pad);
  tell(pad, said);
  send(pad);
}

function undo(pad) {
  if (!pad.before.length) return;
  pad.cells = pad.before.pop();
  paint(pad);
  tell(pad, "Undone");
  send(pad);
}

function send(pad) {
  pad.number += 1;
  const cells = btoa(String.fromCharCode(...pad.cells));
  pad.component.setStateValue("drawn", { number: pad.number, cells });
}

// ------------------------------------------------------------------------------------- pointer and keys

function cellAt(pad, event) {
  const box = pad.canvas.getBoundingClientRect();
  const of = (at, most) => Math.min(Math.max(Math.floor(at * most), 0), most - 1);
  return [of((event.clientX - box.left) / box.width, pad.width), of((event.clientY - box.top) / box.height, pad.height)];
}

function begin(pad, event) {
  if (event.button) return;
  // A second finger is no second stroke.
  if (pad.last !== null) return;
  event.preventDefault();
  pad.sheet.setPointerCapture(event.pointerId);
  pad.sheet.focus({ focusVisible: false, preventScroll: true });
  place_cursor(pad, false);
  keep(pad);
  pad.last = pad.at = cellAt(pad, event);
  dab(pad, ...pad.last, pad.erasing);
  paint(pad);
}

function go(pad, event) {
  if (pad.last === null) return;
  const [x, y] = cellAt(pad, event);
  // A quick hand leaves cells out between two events.
  const [fromX, fromY] = pad.last;
  const steps = Math.max(Math.abs(x - fromX), Math.abs(y - fromY));
  for (let step = 1; step <= steps; step++) {
    dab(pad, Math.round(fromX + ((x - fromX) * step) / steps), Math.round(fromY + ((y - fromY) * step) / steps), pad.erasing);
  }
  pad.last = pad.at = [x, y];
  if (steps) paint(pad);
}

function end(pad) {
  if (pad.last === null) return;
  pad.last = null;
  send(pad);
}

function key(pad, event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const by = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
  const erasing = event.key === "Backspace" || event.key === "Delete";
  if (by === undefined && event.key !== " " && !erasing) return;
  event.preventDefault();
  event.stopPropagation();
  if (by !== undefined) {
    pad.at = [
      Math.min(Math.max(pad.at[0] + by[0], 0), pad.width - 1),
      Math.min(Math.max(pad.at[1] + by[1], 0), pad.height - 1),
    ];
  }
  place_cursor(pad, true);
  const where = `row ${pad.at[1] + 1}, column ${pad.at[0] + 1}`;
  if (by === undefined) {
    const gone = erasing || pad.erasing;
    change(pad, () => dab(pad, ...pad.at, gone), `${where} ${gone ? "erased" : "painted"}`);
    return;
  }
  const at = pad.channels * (pad.at[1] * pad.width + pad.at[0]);
  const painted = pad.cells.slice(at, at + pad.channels).some((value) => value > 0);
  tell(pad, `${where}, ${painted ? "painted" : "empty"}`);
}
