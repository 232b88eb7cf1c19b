"use strict";
(() => {
  const config = { displayModeBar: false, responsive: true };
  const waiting = new Set(document.querySelectorAll(".chart"));
  const shown = new Set();
  // Library and figures are compressed: 5 MB would take longer to send than to unpack.
  const unpack = async (text) => {
    const bytes = Uint8Array.from(atob(text.trim()), (character) => character.charCodeAt(0));
    const packed = new Blob([bytes]).stream();
    return new Response(packed.pipeThrough(new DecompressionStream("gzip"))).text();
  };
  const figures = new Map();
  const load = async () => {
    const script = document.createElement("script");
    script.textContent = await unpack(document.getElementById("plotly").textContent);
    document.head.append(script);
    script.remove(); // it has run; a page that is saved keeps one copy
    for (const place of waiting)
      figures.set(place, JSON.parse(await unpack(place.nextElementSibling.textContent)));
  };
  const draw = (place) => {
    waiting.delete(place);
    const figure = figures.get(place);
    Plotly.newPlot(place, figure.data, figure.layout, config);
  };
  // One chart at a time, those in the window first: the page can be read and scrolled meanwhile.
  const next = () => {
    const inWindow = [...waiting].filter((place) => shown.has(place));
    const [place] = inWindow.length ? inWindow : waiting;
    if (!inWindow.length) document.documentElement.dataset.drawn = place ? "window" : "all";
    if (place) {
      draw(place);
      setTimeout(next);
    }
  };
  const failed = () => {
    document.documentElement.classList.remove("drawing");
    for (const place of waiting)
      place.textContent =
        "This browser cannot draw the chart: it is older than 2023. Its numbers are in the table.";
  };
  let begun = false;
  const watch = new IntersectionObserver((changes) => {
    for (const { target, isIntersecting } of changes)
      isIntersecting ? shown.add(target) : shown.delete(target);
    // Behind the first frame, which shows the words.
    if (!begun) setTimeout(() => load().then(next, failed));
    begun = true;
  });
  waiting.forEach((place) => watch.observe(place));
  document.documentElement.classList.add("drawing");
  addEventListener("beforeprint", () => {
    for (const place of [...waiting]) if (figures.has(place)) draw(place);
  });
  if (!waiting.size) next();
})();
