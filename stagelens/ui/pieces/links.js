// A click on a link of the dashboard turns the page within it; otherwise the browser loads all anew.
export default function () {
  const turn = (event) => {
    // Another tab or window is opened by the browser itself, and Streamlit's own links are done.
    if (event.defaultPrevented || event.button) return;
    if (event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return;
    const link = event.composedPath().find((one) => one instanceof HTMLAnchorElement);
    if (!link || link.origin !== location.origin || link.download || link.hash) return;
    if (link.target && link.target !== "_self") return;
    event.preventDefault();
    history.pushState(null, "", link.href);
    // As after Back and Forward, Streamlit shows what the address says.
    dispatchEvent(new PopStateEvent("popstate"));
  };
  document.addEventListener("click", turn);
  return () => document.removeEventListener("click", turn);
}
