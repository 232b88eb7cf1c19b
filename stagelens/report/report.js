"use strict";
(() => {
  const config = { displayModeBar: false, responsive: true };
  const waiting = new Set(document.querySelectorAll(".chart"));
  const draw = (place) => {
    waiting.delete(place);
    const figure = JSON.parse(place.nextElementSibling.textContent);
    Plotly.newPlot(place, figure.data, figure.layout, config);
  };
  // One chart at a time, so that the page can be read and scrolled from the first moment on.
  const next = () => {
    const [place] = waiting;
    if (place) {
      draw(place);
      setTimeout(next);
    } else {
      document.documentElement.dataset.drawn = "all";
    }
  };
  addEventListener("beforeprint", () => waiting.forEach(draw));
  requestAnimationFrame(() => setTimeout(next));
})();
