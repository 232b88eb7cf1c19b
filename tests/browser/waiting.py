"""For what a page is waited, as scripts that it evaluates."""

IDLE = """() => {
    const app = document.querySelector('[data-testid="stApp"]');
    return app !== null
        && app.dataset.testConnectionState === "CONNECTED"
        && app.dataset.testScriptState === "notRunning"
        && document.querySelector('[data-testid="stStatusWidget"], [data-testid="stSkeleton"], '
            + '[data-testid="stAppSkeleton"], [data-stale="true"]') === null;
}"""

SHOWN_IN = """scheme => {
    const colour = getComputedStyle(document.querySelector('[data-testid="stApp"]'))
        .backgroundColor.match(/[0-9.]+/g).slice(0, 3).map(Number);
    return (Math.max(...colour) < 128) === (scheme === "dark");
}"""

NEXT_FRAMES = (
    "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done())))"
)
