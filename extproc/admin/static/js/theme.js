// Sets the chosen colours before anything is drawn; main.js owns the button. A plain script, for that reason.
(() => {
  let chosen = null;
  try { chosen = localStorage.getItem("steersman-theme"); } catch { /* storage may be forbidden */ }
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
})();
