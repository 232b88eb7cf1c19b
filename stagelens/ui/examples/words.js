// Editable words: a text whose words are shaded by what they push, and are changed one by one.
//
// What is typed is known here. It is sent at once, and while an answer is awaited only the newest
// text is kept for the next question, so that nobody waits for answers that are out of date. Words
// from data are set as text, never as markup.

const MOST_UNDONE = 200;
const PATIENCE = 4000; // ms after which an answer is no longer awaited
const WORD = /[\p{L}\p{N}\p{M}_]+(?:['’-][\p{L}\p{N}\p{M}_]+)*|[^\s\p{L}\p{N}\p{M}_]/gu;
const pens = new WeakMap();

export default function (component) {
  const root = component.parentElement;
  let pen = pens.get(root);
  if (pen === undefined) {
    pen = makePen(root.querySelector(".pen"));
    pens.set(root, pen);
  }
  pen.component = component;
  show(pen, component.data);
}

function makePen(place) {
  const find = (kind) => place.querySelector(kind);
  const text = find(".text");
  const pen = { find, text, before: [], shown: "", number: 0, awaited: 0, late: null, from: undefined, look: "" };
  text.oninput = (event) => {
    if (!event.isComposing) changed(pen);
  };
  text.addEventListener("compositionend", () => changed(pen));
  text.onkeydown = (event) => {
    if ((event.ctrlKey || event.metaKey) && !event.shiftKey && event.key.toLowerCase() === "z") {
      event.preventDefault();
      undo(pen);
    }
  };
  for (const kind of ["keyup", "click", "focus", "select"]) text.addEventListener(kind, () => draw(pen));
  find(".remove").onclick = () => remove(pen);
  find(".swap").onclick = () => swap(pen);
  find(".insert").onclick = () => insert(pen, find(".other").value.trim());
  find(".other").onkeydown = (event) => {
    if (event.key !== "Enter") return;
    event.preventDefault();
    if (find(".swap").disabled) insert(pen, find(".other").value.trim());
    else swap(pen);
  };
  find(".other").oninput = () => draw(pen);
  find(".undo").onclick = () => undo(pen);
  find(".clear").onclick = () => put(pen, "", 0);
  find(".look").onchange = (event) => {
    pen.look = event.target.value;
    draw(pen);
  };
  startFrom(pen);
  return pen;
}

// ------------------------------------------------------------------------------------- what is shown

function show(pen, data) {
  const { find, text } = pen;
  pen.data = data;
  text.maxLength = data.most;
  if (data.number >= pen.awaited) {
    clearTimeout(pen.late);
    pen.awaited = 0;
  }
  // What was typed here is newer than what the server heard of.
  if (pen.from !== data.from) {
    pen.from = data.from;
    pen.before = [];
    pen.awaited = 0;
    text.value = pen.shown = data.text;
    text.setSelectionRange(text.value.length, text.value.length);
  } else if (!pen.awaited && text.value !== pen.sent && pen.sent !== undefined) {
    send(pen);
  }
  const looks = data.looks.map((look) => look.name);
  const select = find(".look");
  if (JSON.stringify([...select.options].map((one) => one.value)) !== JSON.stringify(looks)) {
    select.replaceChildren(...looks.map((name) => new Option(name, name)));
    if (looks.includes(pen.look)) select.value = pen.look;
  }
  find(".by").hidden = !looks.length;
  find(".found").hidden = !data.found.length;
  const names = data.found.map((one) => one.word).join("\n");
  if (pen.names !== names) {
    pen.names = names;
    find(".words").replaceChildren(
      ...data.found.map((one) => {
        const button = document.createElement("button");
        button.type = "button";
        button.textContent = one.word;
        button.title = one.said;
        button.onclick = () => insert(pen, one.word);
        return button;
      }),
    );
  }
  draw(pen);
}

/** The words of what is written now, with what is known of those that the answer is about. */
function words(pen) {
  const now = pen.text.value;
  const then = pen.data.text;
  let same = 0;
  while (same < Math.min(now.length, then.length) && now[same] === then[same]) same++;
  let behind = 0;
  while (behind < Math.min(now.length, then.length) - same && now.at(-1 - behind) === then.at(-1 - behind)) behind++;
  const known = new Map();
  pen.data.words.forEach(([start, end, unknown], place) => {
    const moved = end <= same ? 0 : start >= then.length - behind ? now.length - then.length : null;
    if (moved !== null) known.set(`${start + moved}-${end + moved}`, { place, unknown });
  });
  return [...now.matchAll(WORD)].map((found) => {
    const [start, end] = [found.index, found.index + found[0].length];
    return { start, end, word: found[0], known: known.get(`${start}-${end}`) };
  });
}

const look = (pen) => pen.data.looks.find((one) => one.name === pen.find(".look").value);

/** The word that the cursor stands in or behind; of a selection, the first. */
function here(pen, all) {
  const [from, to] = [pen.text.selectionStart, Math.max(pen.text.selectionEnd, pen.text.selectionStart)];
  return all.find((one) => (from === to ? one.start <= from && from <= one.end : one.start < to && from < one.end));
}

function draw(pen) {
  const { find, text } = pen;
  const all = words(pen);
  const at = here(pen, all);
  const shades = look(pen)?.words;
  const parts = [];
  let done = 0;
  for (const one of all) {
    parts.push(text.value.slice(done, one.start));
    const span = document.createElement("span");
    span.textContent = one.word;
    const shade = one.known && shades?.[one.known.place];
    if (shade) {
      span.style.background = shade.background;
      span.style.textDecoration = shade.line;
    }
    span.classList.toggle("unknown", Boolean(one.known?.unknown));
    span.classList.toggle("here", one === at);
    parts.push(span);
    done = one.end;
  }
  // A line break at the very end has a height only if something follows it.
  find(".back").replaceChildren(...parts, `${text.value.slice(done)}\u200b`);
  find(".remove").disabled = at === undefined;
  find(".swap").disabled = at === undefined || !find(".other").value.trim();
  find(".insert").disabled = !find(".other").value.trim();
  find(".undo").disabled = !pen.before.length;
  find(".clear").disabled = !text.value;
  find(".help").textContent = pen.data.help;
  const said = pen.told ?? (at ? said_of(pen, at, shades) : pen.data.idle);
  if (find(".which").textContent !== said) find(".which").textContent = said;
}

function said_of(pen, at, shades) {
  const said = [];
  if (at.known?.unknown) said.push(pen.data.unknown);
  const shade = at.known && shades?.[at.known.place];
  if (shade) said.push(shade.said);
  return `“${at.word}”${said.length ? `: ${said.join("; ")}` : ""}`;
}

// ------------------------------------------------------------------------------------- what is written

function keep(pen, before) {
  pen.before.push(before);
  if (pen.before.length > MOST_UNDONE) pen.before.shift();
}

/** After a key: what stood there before can be had back, word by word. */
function changed(pen) {
  const { text, shown } = pen;
  if (text.value === shown) return;
  const typed = text.value.length === shown.length + 1 && text.value.startsWith(shown) && /\S/.test(text.value.at(-1));
  if (!typed || /\s$/.test(shown) || !pen.before.length) keep(pen, shown);
  pen.shown = text.value;
  pen.told = null;
  send(pen);
  draw(pen);
}

function put(pen, value, at, said) {
  if (value === pen.text.value) return;
  keep(pen, pen.text.value);
  replace(pen, value, at, said);
}

function replace(pen, value, at, said) {
  pen.text.value = pen.shown = value.slice(0, pen.data.most);
  pen.text.setSelectionRange(at, at);
  pen.told = said ?? null;
  send(pen);
  draw(pen);
  pen.told = null;
}

function undo(pen) {
  if (!pen.before.length) return;
  const value = pen.before.pop();
  replace(pen, value, value.length, "Undone.");
}

function remove(pen) {
  const at = here(pen, words(pen));
  if (!at) return;
  const { value } = pen.text;
  const [before, after] = [value.slice(0, at.start), value.slice(at.end)];
  const spare = /\s$/.test(before) && (!after || /^\s/.test(after));
  const head = spare ? before.slice(0, -1) : before;
  put(pen, head + (before ? after : after.replace(/^\s/, "")), head.length, `“${at.word}” is removed.`);
}

function swap(pen) {
  const at = here(pen, words(pen));
  const word = pen.find(".other").value.trim();
  if (!at || !word) return;
  const { value } = pen.text;
  put(pen, value.slice(0, at.start) + word + value.slice(at.end), at.start + word.length, `“${at.word}” is now “${word}”.`);
}

/** Behind the word at the cursor, or where the cursor is. */
function insert(pen, word) {
  if (!word) return;
  const { value } = pen.text;
  const place = here(pen, words(pen))?.end ?? pen.text.selectionEnd;
  const [before, after] = [value.slice(0, place), value.slice(place)];
  const head = before + (before && !/\s$/.test(before) ? " " : "") + word;
  put(pen, head + (after && !/^[\s.,;:!?]/.test(after) ? " " : "") + after, head.length, `“${word}” is inserted.`);
}

function send(pen) {
  if (pen.awaited) return;
  pen.number = Math.max(pen.number, pen.data.number) + 1;
  pen.awaited = pen.number;
  pen.sent = pen.text.value;
  clearTimeout(pen.late);
  pen.late = setTimeout(() => {
    pen.awaited = 0;
    if (pen.text.value !== pen.sent) send(pen);
  }, PATIENCE);
  pen.component.setStateValue("typed", { number: pen.number, text: pen.sent });
}
