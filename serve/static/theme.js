// Before anything is drawn: the theme chosen in this browser, else the system's.
"use strict";
try {
  const theme = localStorage.getItem("thermocline-theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch { /* no storage: the system's */ }
