// Before the page is drawn: the theme that was chosen here, else the system's.
"use strict";
try {
  const chosen = localStorage.getItem("theme");
  if (chosen === "dark" || chosen === "light") document.documentElement.dataset.theme = chosen;
} catch (error) {
  // Storage may be switched off.
}
