// Asks the server. Every failure becomes one sentence.

/** A call that failed: the server's sentence, or ours where it does not answer. */
export class Failed extends Error {
  constructor(message, code) {
    super(message);
    this.code = code;
  }
}

export function get(path) {
  return call(path, { method: "GET" });
}

export function post(path, content) {
  return call(path, {
    method: "POST",
    headers: { "content-type": "application/json", "x-gpt2-dashboard": "1" },
    body: JSON.stringify(content),
  });
}

async function call(path, options) {
  let answer;
  try {
    answer = await fetch(`/api/v1/${path}`, options);
  } catch {
    throw new Failed("The dashboard's own server does not answer: start it (gpt2 stack up, or gpt2 dashboard).", "UNREACHABLE");
  }
  let content;
  try {
    content = await answer.json();
  } catch {
    throw new Failed(`The server's answer (${answer.status}) cannot be read: something between it and this page changed it.`, "UNREADABLE");
  }
  if (!answer.ok) throw new Failed(content.error.message, content.error.code);
  return content;
}
