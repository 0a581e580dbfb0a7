// What the page does once it is there: maps to walk, commands to copy, boxes to scroll with the keyboard.

function copyable(box) {
  const button = box.querySelector("button");
  const code = box.querySelector("code");
  const say = (text) => {
    button.textContent = text;
    setTimeout(() => (button.textContent = "Copy"), 2000);
  };
  // The older way, for browsers that give a page from a file no clipboard.
  const select = () => {
    getSelection().selectAllChildren(code);
    say(document.execCommand("copy") ? "Copied" : "Press Ctrl+C");
  };
  button.hidden = false;
  button.addEventListener("click", () => {
    if (!navigator.clipboard) select();
    else navigator.clipboard.writeText(code.textContent).then(() => say("Copied"), select);
  });
}

// A box that has more than it shows is a stop of the Tab key, so that arrow keys can scroll it. Maps have stops already.
function scrollable(box) {
  if (box.querySelector(".map")) return;
  const named = document.getElementById(box.querySelector("table")?.getAttribute("aria-labelledby"));
  const name = named?.textContent ?? "Table";
  new ResizeObserver(() => {
    const isCut = box.scrollWidth > box.clientWidth;
    for (const [key, value] of [["tabindex", "0"], ["role", "region"], ["aria-label", name]]) {
      if (isCut) box.setAttribute(key, value);
      else box.removeAttribute(key);
    }
  }).observe(box);
}

document.querySelectorAll(".command").forEach(copyable);
document.querySelectorAll(".scroll").forEach(scrollable);
document.querySelectorAll(".maps").forEach(plainMaps);
document.querySelectorAll(".heads").forEach(headMap);
