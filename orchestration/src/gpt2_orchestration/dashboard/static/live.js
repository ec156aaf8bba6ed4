// The stream of changes. It connects again by itself; where it cannot, the page asks every few seconds instead.

const POLL_MILLIS = 5000;
const RETRY_MILLIS = 15000;

/**
 * Follows the changes while the page is seen.
 * @param {Object} hear `change(kind, content)` for each, `reread()` when some may have been missed, and `state(name)`:
 *   `live`, `polling` or `lost`.
 */
export function follow(hear) {
  let source = null;
  let poll = null;
  let retry = null;
  let missed = false;

  function connect() {
    clearTimeout(retry);
    source?.close();
    source = new EventSource("/api/v1/events");
    source.onopen = () => {
      clearInterval(poll);
      poll = null;
      hear.state("live");
      if (missed) hear.reread();
      missed = false;
    };
    source.onerror = () => {
      missed = true;
      askInstead();
      // A refused stream is not tried again by the browser.
      if (source.readyState === EventSource.CLOSED) retry = setTimeout(connect, RETRY_MILLIS);
    };
    for (const kind of ["job", "label", "troubles"]) {
      source.addEventListener(kind, (event) => hear.change(kind, JSON.parse(event.data)));
    }
  }

  function askInstead() {
    if (poll !== null) return;
    const ask = async () => hear.state((await hear.reread()) ? "polling" : "lost");
    poll = setInterval(ask, POLL_MILLIS);
    ask();
  }

  // A browser allows few connections to one server: a page that is not seen gives its one back.
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden) return connect();
    source?.close();
    clearTimeout(retry);
    clearInterval(poll);
    poll = null;
    missed = true;
  });
  connect();
}
