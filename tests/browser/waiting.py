"""For what a page is waited, as scripts that it evaluates."""

EXCHANGE = """(() => {
    // Runs of the script that the page asked for and that began, as its messages to the server and
    // from there tell. `acted` is true from what a person does until the page asks for a run, or
    // long enough not to: a slider waits a fifth of a second for the next step.
    const state = { asked: 0, begun: 0, ended: false, acted: false, last: 0, due: 0 };
    // Fewer runs than were asked for: one is about to begin; or one answered two requests, or the
    // server dropped one, of a part that is gone, which is to be seen by waiting only.
    const complete = () => state.begun >= state.asked || performance.now() > state.due;
    // The top-level fields of a protobuf message.
    const fields = (bytes) => {
        const found = new Map();
        let at = 0;
        const number = () => {
            let value = 0, scale = 1, byte;
            do {
                byte = bytes[at++];
                value += (byte & 127) * scale;
                scale *= 128;
            } while (byte > 127);
            return value;
        };
        while (at < bytes.length) {
            const tag = number(), kind = tag & 7;
            if (kind === 0) {
                found.set(tag >> 3, number());
            } else {
                const length = kind === 2 ? number() : kind === 1 ? 8 : 4;
                found.set(tag >> 3, null);
                at += length;
            }
        }
        return found;
    };
    const RERUN_SCRIPT = 11, NEW_SESSION = 4, SCRIPT_FINISHED = 6, EARLY_FOR_RERUN = 2;
    window.WebSocket = class extends WebSocket {
        constructor(...given) {
            super(...given);
            this.addEventListener("message", ({ data }) => {
                const found = fields(new Uint8Array(data));
                state.last = performance.now();
                if (found.has(NEW_SESSION)) {
                    state.begun += 1;
                    state.ended = false;
                } else if (found.has(SCRIPT_FINISHED)) {
                    state.ended = found.get(SCRIPT_FINISHED) !== EARLY_FOR_RERUN;
                }
            });
        }
        send(data) {
            super.send(data);
            if (fields(new Uint8Array(data)).has(RERUN_SCRIPT)) {
                state.last = performance.now();
                if (state.ended && complete()) state.asked = state.begun = 0;
                if (state.begun >= state.asked) state.due = state.last + 2000;
                state.asked += 1;
                state.acted = false;
            }
        }
    };
    let late;
    const act = () => {
        state.acted = true;
        clearTimeout(late);
        late = setTimeout(() => { state.acted = false; }, 400);
    };
    for (const what of ["pointerdown", "pointerup", "click", "keydown", "change", "popstate"]) {
        addEventListener(what, act, true);
    }
    window.answered = () => {
        const calm = performance.now() - state.last;
        return !state.acted && state.ended && calm >= 50 && complete();
    };
})()"""
"""Given to every page before its own scripts: watches what it exchanges with the server."""

IDLE = """() => {
    const app = document.querySelector('[data-testid="stApp"]');
    return app !== null
        && window.answered()
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
