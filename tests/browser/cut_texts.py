"""What of a page cannot be read as a whole: cut by a box, off the screen, or sideways of it."""

from __future__ import annotations

from playwright.sync_api import Page

_FIND = """() => {
    const found = new Set();
    const skipped = "style, script, option, canvas, [aria-hidden=true], [class*=st-key-pin-to-]";
    const told = (how, by, element) =>
        found.add(`${how} by ${Math.round(by)} pixels: ${element.textContent.trim().slice(0, 60)}`);
    const look = (element) => {
        const words = document.createRange();
        words.selectNodeContents(element);
        const text = words.getBoundingClientRect();
        if (text.width < 2 || text.height < 2) return;
        for (let box = element; box; box = box.parentElement ?? box.getRootNode().host) {
            const { overflowX, overflowY, webkitLineClamp } = getComputedStyle(box);
            // What can be scrolled to can be read; what says only so much on purpose, shows it.
            if ([overflowX, overflowY].some(way => way === "auto" || way === "scroll")) return;
            if (webkitLineClamp !== "none") return;
            const edge = box.getBoundingClientRect();
            // Kept for people who hear the page.
            if (edge.width < 3 || edge.height < 3) return;
            const beyond = Math.max(text.right - edge.right, edge.left - text.left);
            const below = Math.max(text.bottom - edge.bottom, edge.top - text.top);
            if (overflowX !== "visible" && beyond > 1.5) return told("cut", beyond, element);
            if (overflowY !== "visible" && below > 3) return told("cut", below, element);
        }
        if (text.right > innerWidth + 1) told("off the screen", text.right - innerWidth, element);
    };
    const visit = (root) => {
        for (const element of root.querySelectorAll("*")) {
            if (element.shadowRoot) visit(element.shadowRoot);
            const own = [...element.childNodes].some(
                each => each.nodeType === Node.TEXT_NODE && each.textContent.trim());
            if (own && element.checkVisibility({ opacityProperty: true, visibilityProperty: true })
                && !element.closest(skipped)) look(element);
        }
    };
    const main = document.querySelector('[data-testid="stMain"]');
    const overflow = main.scrollWidth - main.clientWidth;
    if (overflow > 1) found.add(`the page sticks out by ${overflow} pixels`);
    visit(main);
    return [...found];
}"""


def cut_texts(page: Page) -> list[str]:
    """Each of these words, with what is wrong with them. Tables, which scroll, are left out.

    Figures draw themselves anew a moment after a window has changed: what is cut then is looked at
    again, and counts if it stays so.
    """
    for _ in range(20):
        if not (found := page.evaluate(_FIND)):
            break
        page.wait_for_timeout(250)
    return list(found)
