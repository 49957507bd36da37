"""The documentation of tasks is what the tasks and methods say."""

from omegaconf import OmegaConf

from modules import capabilities
from tests.tasks.table import ROOT, page, readme_table, renewed, rows

ADVICE = "out of date, renew by: python -m tests.tasks.table"


def test_documentation_is_current():
    assert (ROOT / "docs/tasks.md").read_text(encoding="utf-8") == page(), ADVICE
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert renewed(readme) == readme, ADVICE


def test_rows_name_every_task_and_the_methods_that_can():
    table = {row.name: row for row in rows()}
    files = [path for path in ROOT.glob("configs/tasks/*.yaml") if OmegaConf.load(path).task.class_path.startswith("tasks.")]
    assert table.keys() == {path.stem for path in files} and all(f"| [{name}](" in readme_table() for name in table)
    assert table["generate"].options.keys() == {method.__name__ for method in capabilities.methods()}
    assert list(table["inpaint"].options) == [method.__name__ for method in capabilities.methods(capabilities.Inpaints)]
    assert list(table["inpaint"].options["GPNN"]) == ["guided", "noise"]
    assert "start_scale" in table["generate"].options["SinGAN"] and not table["generate"].options["GPDM"]
