// A click on a timeline tells what is heard there and, where the sound is in the page, plays from there.
for (const card of document.querySelectorAll(".recording")) {
  const timeline = card.querySelector(".timeline");
  const head = card.querySelector(".playhead");
  const told = card.querySelector(".told");
  const sound = card.querySelector("audio");
  const seconds = Number(timeline.dataset.seconds);
  const show = (part) => {
    head.style.left = 100 * part + "%";
    head.hidden = false;
    const lines = [];
    for (const lane of timeline.querySelectorAll(".lane")) {
      for (const block of lane.querySelectorAll("rect")) {
        const left = Number(block.getAttribute("x"));
        if (left <= 100 * part && 100 * part < left + Number(block.getAttribute("width"))) {
          lines.push((lane.dataset.name ? lane.dataset.name + ", " : "") + block.querySelector("title").textContent);
        }
      }
    }
    told.textContent = lines.join(" · ");
  };
  const seek = (part) => {
    show(part);
    if (sound) sound.currentTime = part * seconds;
  };
  timeline.addEventListener("click", (event) => {
    const box = timeline.getBoundingClientRect();
    seek(Math.min(0.999999, Math.max(0, (event.clientX - box.left) / box.width)));
    if (sound) sound.play().catch(() => {});
  });
  timeline.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -0.01, ArrowRight: 0.01 }[event.key];
    if (!step) return;
    event.preventDefault();
    const now = sound ? sound.currentTime / seconds : (parseFloat(head.style.left) || 0) / 100;
    seek(Math.min(0.999999, Math.max(0, now + step)));
  });
  if (sound) sound.addEventListener("timeupdate", () => show(Math.min(0.999999, sound.currentTime / seconds)));
}
