// Words from data are set as text, never as markup.

export default function ({ parentElement, data, setTriggerValue }) {
  const list = parentElement.querySelector(".cards");
  const narrow = matchMedia("(max-width: 640px)");
  const draw = () => {
    const told = narrow.matches ? JSON.stringify(data) : "";
    // Drawn anew, a card would lose the focus.
    if (list.told === told) return;
    list.told = told;
    const open = (card) => setTriggerValue("open", card.id);
    list.replaceChildren(...(narrow.matches ? data.cards.map((card) => cardOf(card, open)) : []));
  };
  draw();
  narrow.addEventListener("change", draw);
  return () => narrow.removeEventListener("change", draw);
}

function made(tag, kind, ...inside) {
  const one = document.createElement(tag);
  one.className = kind;
  one.append(...inside);
  return one;
}

function cardOf(card, open) {
  const button = made("button", "card");
  button.type = "button";
  button.onclick = () => open(card);
  if (card.picture) {
    const image = made("img", "");
    image.src = card.picture;
    image.alt = "";
    button.append(image);
  } else {
    button.append(made("span", "text", card.text));
  }
  const facts = made("span", "facts", made("span", "quiet", card.id), document.createElement("br"));
  facts.append(made("span", "answer", card.answer));
  if (card.label !== null) facts.append(`, label ${card.label}`);
  button.append(facts);
  const effects = made("span", "effects");
  for (const each of card.effects) {
    const row = made("span", each.tint < 0 ? "effect blame" : "effect");
    row.style.setProperty("--tint", String(Math.abs(each.tint)));
    row.append(made("span", "", each.stage), made("span", "amount", each.amount));
    row.append(made("span", "quiet", each.without ? `without it ${each.without}` : ""));
    if (each.ends) row.append(made("span", "quiet ends", `with its error ${each.ends}`));
    effects.append(row);
  }
  button.append(effects);
  return made("li", "", button);
}
