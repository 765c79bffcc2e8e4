// text.js - stop strings: text goes through a StopFilter, which holds back what may be the beginning
// of one until it is known.

export class StopFilter {
    /** @param {string[]} stops */
    constructor(stops) {
        this.stops = stops.filter(s => s.length > 0);
        this.held = '';
        this.stopped = false; // a whole stop string came; nothing follows
    }

    /** Takes a piece of text and returns what may be shown; with `last` all that is left. */
    push(text, last = false) {
        if (this.stopped) return '';
        this.held += text;
        let end = this.held.length;
        for (const stop of this.stops) {
            const whole = this.held.indexOf(stop);
            if (whole >= 0 && whole <= end) {
                end = whole;
                this.stopped = true;
            }
        }
        if (!this.stopped && !last) end = this.#open();
        const shown = this.held.slice(0, end);
        this.held = this.stopped ? '' : this.held.slice(end);
        return shown;
    }

    /** Where the earliest beginning of a stop string lies that reaches the end. */
    #open() {
        const n = this.held.length;
        for (let i = Math.max(0, n - this.#longest + 1); i < n; i++)
            if (this.stops.some(s => s.length > n - i && s.startsWith(this.held.slice(i)))) return i;
        return n;
    }

    get #longest() {
        return this.stops.reduce((m, s) => Math.max(m, s.length), 0);
    }
}
