"use strict";
(() => {
  const config = { displayModeBar: false, responsive: true };
  const waiting = new Set(document.querySelectorAll(".chart"));
  const shown = new Set();
  // The library is text until it is needed, so that the words need not wait for it.
  const load = () => {
    const script = document.createElement("script");
    script.textContent = document.getElementById("plotly").textContent;
    document.head.append(script);
    script.remove(); // it has run; a page that is saved keeps one copy
  };
  const draw = (place) => {
    if (!window.Plotly) load();
    waiting.delete(place);
    const figure = JSON.parse(place.nextElementSibling.textContent);
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
  let begun = false;
  const watch = new IntersectionObserver((changes) => {
    for (const { target, isIntersecting } of changes)
      isIntersecting ? shown.add(target) : shown.delete(target);
    if (!begun) setTimeout(next); // behind the first frame, which shows the words
    begun = true;
  });
  waiting.forEach((place) => watch.observe(place));
  document.documentElement.classList.add("drawing");
  addEventListener("beforeprint", () => waiting.forEach(draw));
  if (!waiting.size) next();
})();
