(() => {
  "use strict";
  const root = document.documentElement;
  const all = (selector, from = document) => Array.from(from.querySelectorAll(selector));
  const one = (selector) => document.querySelector(selector);
  all("[data-script]").forEach((element) => { element.hidden = false; });

  const theme = one("#theme");
  const dark = () => root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  const name = () => { theme.textContent = dark() ? "Light theme" : "Dark theme"; };
  // Storage is refused to some pages (sandboxed frames, strict privacy); the theme then lasts until the page is closed.
  try { const kept = localStorage.getItem("gnnstab-theme"); if (kept === "dark" || kept === "light") root.dataset.theme = kept; } catch { /* stays with the system */ }
  theme.addEventListener("click", () => {
    root.dataset.theme = dark() ? "light" : "dark";
    try { localStorage.setItem("gnnstab-theme", root.dataset.theme); } catch { /* not kept */ }
    name();
  });
  name();

  const fallback = (text) => {
    const area = document.createElement("textarea");
    area.value = text;
    area.setAttribute("readonly", "");
    document.body.append(area);
    area.select();
    const copied = document.execCommand("copy");
    area.remove();
    return copied;
  };
  const copy = async (text) => {
    try { await navigator.clipboard.writeText(text); return true; } catch { return fallback(text); }
  };
  all("button[data-copy]").forEach((button) => button.addEventListener("click", async () => {
    const copied = await copy(document.getElementById(button.dataset.copy).textContent);
    button.focus();
    button.textContent = copied ? "Copied" : "Select and copy by hand";
    // The button's own label names the fix and stays; what happened is said beside it.
    const said = button.nextElementSibling;
    said.textContent = button.textContent;
    button.classList.toggle("done", copied);
    setTimeout(() => { button.textContent = "Copy"; said.textContent = ""; button.classList.remove("done"); }, 2000);
  }));

  // Only what is wider than its box says that it scrolls.
  const measure = () => all(".code-box pre, .scroll").forEach((box) => box.parentElement.classList.toggle("wider", box.scrollWidth > box.clientWidth + 1));
  addEventListener("resize", measure);
  measure();

  const form = one("#filter");
  if (!form) return;
  const findings = all("#finding-list li[data-code]");
  const cards = all("#finding-list > li");
  const layers = all(".layer");
  const count = one("#count");
  const empty = one("#nothing");
  const apply = () => {
    const words = form.elements.layer.value.toLowerCase().split(/\s+/).filter(Boolean);
    const code = form.elements.code.value;
    const severities = new Set(all("input[name=severity]:checked", form).map((box) => box.value));
    const named = (element) => words.every((word) => element.dataset.layer.toLowerCase().includes(word));
    let shown = 0;
    for (const item of findings) {
      item.hidden = !(named(item) && severities.has(item.dataset.severity) && (!code || item.dataset.code === code));
      shown += item.hidden ? 0 : 1;
    }
    for (const card of cards) card.hidden = !card.querySelector("li:not([hidden])");
    for (const item of layers) item.hidden = !named(item);
    count.textContent = `${shown} of ${findings.length} finding${findings.length === 1 ? "" : "s"}`;
    empty.hidden = shown > 0;
  };
  const clear = () => { form.reset(); apply(); };
  form.addEventListener("input", apply);
  form.addEventListener("submit", (event) => event.preventDefault());
  one("#clear").addEventListener("click", clear);
  document.addEventListener("keydown", (event) => {
    const typing = event.target.closest("input, select, textarea");
    if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey) { event.preventDefault(); form.elements.layer.focus(); }
    if (event.key === "Escape" && typing) clear();
  });

  // A link to something that the filter hides lifts the filter, so that a link never leads nowhere.
  const reveal = () => {
    const target = location.hash ? document.getElementById(decodeURIComponent(location.hash.slice(1))) : null;
    if (!target) return;
    const folded = target.closest("details:not([open])"), filtered = target.closest("[hidden]");
    if (folded) folded.open = true;
    if (filtered) clear();
    if (folded || filtered) target.scrollIntoView();
    target.setAttribute("tabindex", "-1");
    target.focus({ preventScroll: true });
  };
  addEventListener("hashchange", reveal);
  apply();
  reveal();
})();
