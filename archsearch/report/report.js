for (const plot of document.querySelectorAll(".plot")) {
  const told = plot.querySelector(".told");
  const tell = (event) => {
    const dot = event.target.closest(".dot");
    if (!dot) return;
    told.textContent = dot.querySelector("title").textContent;
    told.classList.add("full");
  };
  for (const kind of ["pointerover", "click", "focusin"]) plot.addEventListener(kind, tell);
}
