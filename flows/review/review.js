// Gives buttons, links and fields the keys that are written on them. The page works without it.
"use strict";

document.addEventListener("keydown", (event) => {
  const field = event.target.closest("input, textarea, select");
  if (event.key === "Escape" && field) { field.blur(); return; }
  if (field || event.ctrlKey || event.metaKey || event.altKey || event.isComposing || event.repeat) return;
  const found = [...document.querySelectorAll("[data-key], [data-focus]")]
    .find((one) => (one.dataset.key || one.dataset.focus) === event.key);
  if (!found) return;
  event.preventDefault();
  if (found.dataset.focus) found.focus();
  else found.click();
});

// A form is sent once, however often its key is pressed before the next page is there.
document.addEventListener("submit", (event) => {
  const form = event.target;
  if (form.method !== "post") return;
  if (document.body.dataset.sent) event.preventDefault();
  document.body.dataset.sent = "yes";
});
window.addEventListener("pageshow", () => { delete document.body.dataset.sent; });
