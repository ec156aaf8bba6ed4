// A question before something is changed. What the server refuses is said in it, and it stays open.

import { element, foreign } from "./elements.js";

/**
 * Asks, and sends what was answered.
 * @param {Object} question `title`, `text`, `button`, `fields` of `name`, `label`, and optional `value`, `required`,
 *   `limit`, `choices`; `send(content)` returns a promise.
 */
export function ask({ title, text, fields, button, send }) {
  const error = element("p", { class: "failure", role: "alert", hidden: true });
  const inputs = fields.map((field) =>
    element("input", {
      id: `ask-${field.name}`,
      name: field.name,
      value: field.value ?? "",
      required: field.required,
      maxlength: field.limit,
      list: field.choices && `choices-${field.name}`,
      autocomplete: "off",
    }),
  );
  const rows = fields.map((field, index) => [
    element("label", { for: `ask-${field.name}` }, field.label),
    inputs[index],
    field.choices && element("datalist", { id: `choices-${field.name}` }, field.choices.map((value) => element("option", { value }))),
  ]);
  const submit = element("button", { type: "submit", class: "main" }, button);
  const close = element("button", { type: "button", click: () => dialog.close() }, "Leave it");
  const form = element("form", { submit: onSubmit }, foreign(text, "p"), rows, error, element("div", { class: "actions" }, submit, close));
  const dialog = element("dialog", { "aria-labelledby": "ask-title", close: leave }, element("h2", { id: "ask-title" }, foreign(title)), form);

  function leave() {
    dialog.remove();
    // What it was opened with may have been replaced meanwhile.
    if (document.activeElement === document.body) document.querySelector("h1").focus();
  }

  async function onSubmit(event) {
    event.preventDefault();
    submit.disabled = true;
    try {
      await send(Object.fromEntries(inputs.map((input) => [input.name, input.value])));
      dialog.close();
    } catch (failed) {
      if (failed.code === undefined) throw failed;
      error.hidden = false;
      error.replaceChildren(foreign(failed.message));
    } finally {
      submit.disabled = false;
    }
  }

  document.body.append(dialog);
  dialog.showModal();
}
