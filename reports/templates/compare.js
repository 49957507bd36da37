const slider = document.getElementById("step");
function showStep() {
  const last = +slider.max;
  document.querySelectorAll("[data-steps]").forEach((run) => {
    const figures = [...run.children];
    const current = Math.round((slider.value * (figures.length - 1)) / last);
    figures.forEach((figure, i) => { figure.hidden = i !== current; });
  });
  document.getElementById("position").textContent = "checkpoint " + (+slider.value + 1) + " of " + (last + 1);
}
if (slider) {
  document.querySelector(".control").hidden = false;
  slider.addEventListener("input", showStep);
  showStep();
}
