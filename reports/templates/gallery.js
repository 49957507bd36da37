const field = document.getElementById("filter");
const runs = [...document.querySelectorAll("article")];
function filterRuns() {
  const words = field.value.toLowerCase().split(" ").filter(Boolean);
  runs.forEach((run) => {
    const text = run.textContent.toLowerCase();
    run.hidden = !words.every((word) => text.includes(word));
  });
  const count = runs.filter((run) => !run.hidden).length;
  document.getElementById("count").textContent = count + " of " + runs.length + " runs";
}
document.querySelector(".control").hidden = false;
field.addEventListener("input", filterRuns);
filterRuns();
