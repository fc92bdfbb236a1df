// Shows the OpenAPI document; where reading it needs a key, asks for the key first and keeps it in this page only.
"use strict";

const NEEDS_KEY = [401, 403, 429];
const [view, form, field, refusal] = ["document", "key-form", "key", "refusal"].map((id) => document.getElementById(id));

async function show(key) {
  refusal.textContent = "";
  const reply = await fetch(view.dataset.source, { headers: key ? { Authorization: `Bearer ${key}` } : {} });
  form.hidden = !NEEDS_KEY.includes(reply.status);
  if (!reply.ok) throw new Error((await reply.json()).error);
  const page = SwaggerUIBundle({
    spec: await reply.json(),
    domNode: view,
    validatorUrl: null, // by default a public server is asked
    onComplete: () => key && page.preauthorizeApiKey("key", key),
  });
}

function tryToShow(key) {
  show(key).catch((error) => (refusal.textContent = error.message));
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  tryToShow(field.value.trim());
});
tryToShow("");
