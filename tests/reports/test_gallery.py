import base64
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import evaluate
from reports.gallery import Gallery, last_logged, newest_grid, run_folders, status
from tests.reports.reading import browse, check_self_contained, in_browser, keyboard_on, needs_browser

ROOT = Path(__file__).parents[2]


def make_run(folder, images=3, side=64, **manifest):
    (folder / "images").mkdir(parents=True)
    (folder / "checkpoints").mkdir()
    for epoch in range(images):
        pixels = np.full((side, side, 3), (40 + epoch) % 256, np.uint8)
        Image.fromarray(pixels).save(folder / f"images/samples_{epoch:04d}.png")
    run = {
        "run_name": folder.name, "status": "finished", "stage": 2, "num_stages": 4, "epoch": 7, "iteration": 1234,
        "updated": "2026-01-02T03:04:05+00:00", "git": {"commit": "abcdef0123456789", "dirty": True},
        "lineage": [{"kind": "source", "run_name": "parent", "path": "runs/parent/last.ckpt", "iteration": 99}],
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps(run | manifest))
    values = {"kd_x": 0.12345, "pixel_diversity": 0.5}
    measured = {"class_path": "modules.singan.SinGAN", "metrics": values, "verdict": {"line": "no copies"}}
    (folder / "metrics.json").write_text(json.dumps(measured))
    return folder


def page_of(folder, out, **options):
    Gallery(**options)([folder], out)
    return (out / "index.html").read_bytes()


def test_the_summary_of_a_run(tmp_path):
    make_run(tmp_path / "runs/birds")
    read = check_self_contained(page_of(tmp_path / "runs", tmp_path))
    parts = ["birds", "finished", "3 of 4", "1234", "SinGAN", "0.1235", "abcdef0123 with local changes", "no copies", "1 run"]
    assert [part for part in parts if part not in read.text] == []
    assert "source parent (runs/parent/last.ckpt, iteration 99)" in read.text
    assert read.all("img")[0]["alt"] == "samples_0002.png of birds" and read.all("img")[0]["width"] == "256"  # four times 64


def test_the_most_suspicious_pairs_of_a_run_are_shown(tmp_path):
    run = make_run(tmp_path / "runs/birds")
    Image.new("RGB", (120, 30), (9, 8, 7)).save(run / "nearest.png")
    (make_run(tmp_path / "runs/cats") / "nearest.png").write_bytes((run / "nearest.png").read_bytes()[:60])
    (make_run(tmp_path / "runs/dogs") / "nearest.png").mkdir()
    page = page_of(tmp_path / "runs", tmp_path, thumbnail=60)
    read = check_self_contained(page)
    (pairs,) = [image for image in read.all("img") if "nearest.png" in image["alt"]]
    assert pairs["alt"] == "nearest.png of birds" and (pairs["width"], pairs["height"]) == ("60", "15")
    assert np.unique(np.asarray(Image.open(io.BytesIO(base64.b64decode(pairs["src"].split(",")[1]))))).tolist() == [7, 8, 9]
    assert "cats/nearest.png" in read.text and read.text.count("Most suspicious pairs") == 1
    assert page_of(tmp_path / "runs", tmp_path, thumbnail=60) == page


def test_the_newest_grid_is_that_of_the_highest_number(tmp_path):
    for number in (9, 10_000, 9999, 100):
        Image.new("RGB", (4, 4)).save(tmp_path / f"samples_{number:04d}.png")
    Image.new("RGB", (4, 4)).save(tmp_path / "samples_late.png")
    assert newest_grid(tmp_path, 60, [])[0] == "samples_10000.png"


def test_runs_are_found_once_up_to_a_depth(tmp_path):
    for name in ("a", "sweep/b", "sweep/c/d"):
        make_run(tmp_path / name)
    make_run(tmp_path / "a/checkpoints/inner")  # inside of a run
    make_run(tmp_path / ".hidden/e")
    (tmp_path / "foreign/notes").mkdir(parents=True)
    (tmp_path / "loop").symlink_to(tmp_path)
    found = [str(path.relative_to(tmp_path)) for path in sorted(run_folders(tmp_path, 3))]
    assert found == ["a", "sweep/b", "sweep/c/d"]
    assert len(list(run_folders(tmp_path, 2))) == 2 and list(run_folders(tmp_path / "a", 0)) == [tmp_path / "a"]
    assert b"3 runs" in page_of(tmp_path, tmp_path / "out")


WRONG_TYPES = '{"status": {"a": 1}, "stage": "x", "lineage": 3, "git": [], "metrics": [1], "verdict": 2}'


@pytest.mark.parametrize("text", ["", "{", "[1]", '"x"', "[" * 100_000, "\x00\xff", WRONG_TYPES])
def test_incomplete_and_foreign_files_are_tolerated(tmp_path, text):
    run = make_run(tmp_path / "runs/odd")
    for name in ("run.json", "metrics.json", "config.yaml"):
        (run / name).write_text(text, encoding="latin-1")
    (run / "metrics.csv").write_text("step,epoch,val/kd_x\n0,0,1.5\n1,1,0.2")
    good = make_run(tmp_path / "runs/good")
    (good / "images/samples_0002.png").write_bytes((good / "images/samples_0001.png").read_bytes()[:60])
    read = check_self_contained(page_of(tmp_path / "runs", tmp_path))
    assert "odd" in read.text and "2 runs" in read.text
    assert "images/samples_0002.png" in read.text  # named as unreadable, the one before it is shown
    assert "samples_0001.png of good" in [image["alt"] for image in read.all("img")]
    if not text:
        assert "0.2" in read.text and "unknown" in read.text


def test_pipes_and_folders_in_place_of_files_do_not_block(tmp_path):
    run = make_run(tmp_path / "runs/odd")
    for name in ("run.json", "metrics.json"):
        (run / name).unlink()
    os.mkfifo(run / "run.json")
    (run / "metrics.json").mkdir()
    os.mkfifo(run / "metrics.csv")
    shutil.rmtree(run / "images")
    (run / "images").write_text("no folder")
    assert "no images yet" in check_self_contained(page_of(tmp_path / "runs", tmp_path)).text


def test_hostile_names_are_escaped(tmp_path):
    hostile = '<img src=x onerror="alert(1)">'
    run = make_run(tmp_path / "runs/<b>bold", run_name=hostile, status="<script>1</script>", error="</article>" * 3)
    (run / "metrics.json").write_text(json.dumps({"metrics": {"<i>": "<u>"}, "class_path": "<s>"}))
    (tmp_path / os.fsdecode(b"runs/\xe9") / "checkpoints").mkdir(parents=True)
    read = check_self_contained(page_of(tmp_path / "runs", tmp_path))
    assert hostile in read.text and "<i>" in read.text and "2 runs" in read.text
    assert len(read.all("img")) == 1 and len(read.all("script")) == 1


def test_an_image_with_too_many_pixels_is_not_decoded(tmp_path):
    run = make_run(tmp_path / "runs/bomb", images=0)
    Image.new("1", (20_000, 20_000)).save(run / "images/samples_0000.png")
    assert "images/samples_0000.png" in check_self_contained(page_of(tmp_path / "runs", tmp_path)).text


def test_large_grids_are_scaled_down(tmp_path):
    make_run(tmp_path / "runs/large", images=1, side=300)
    assert check_self_contained(page_of(tmp_path / "runs", tmp_path, thumbnail=100)).all("img")[0]["width"] == "100"


def test_a_run_without_its_process_has_crashed():
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    here = {"status": "running", "host": socket.gethostname()}
    assert status(here | {"pid": gone.pid}) == "crashed (process no longer running)"
    assert status(here | {"pid": os.getpid()}) == "running"
    assert "crashed" not in status({"status": "running", "host": "elsewhere", "pid": gone.pid})
    assert "crashed" in status(here | {"pid": 10**30}) and "crashed" not in status(here | {"pid": "1"})
    assert status({}) == "unknown"


def test_the_last_logged_values_of_each_column(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,epoch,train/loss,val/a,val/b\n0,0,1,2,\n1,0,3,,-4e-3\n2,1,5,6.5,\n3,1,7")
    assert last_logged(tmp_path / "metrics.csv") == {"val/a": 6.5, "val/b": -0.004}


def test_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    make_run(tmp_path / "runs/birds")
    arguments = [str(tmp_path / "runs"), "configs/tasks/gallery.yaml", f"out={tmp_path / 'out'}"]
    assert evaluate.main(arguments) == 0
    first = (tmp_path / "out/index.html").read_bytes()
    assert evaluate.main([*arguments, "task.thumbnail=360"]) == 0 and (tmp_path / "out/index.html").read_bytes() == first
    assert "1 run" in capsys.readouterr().out
    for wrong, part in (
        ([str(tmp_path / "rans"), *arguments[1:]], "runs"),
        ([str(tmp_path / "out"), *arguments[1:]], "no run folder"),
        ([*arguments, "task.thumbnail=3"], "task.thumbnail: expected int >= 16"),
        ([*arguments, "task.thumbnial=3"], "thumbnail"),
        ([str(tmp_path / "runs/birds")], "birds"),
    ):
        assert evaluate.main(wrong) == 2 and part in capsys.readouterr().err


@pytest.mark.slow
def test_fifty_runs_with_a_hundred_images_each_in_ten_seconds(tmp_path):
    first = make_run(tmp_path / "runs/run_00", images=100, side=500)
    noise = np.random.default_rng(0).integers(0, 256, (500, 500, 3), dtype=np.uint8)
    Image.fromarray(noise).save(first / "images/samples_0099.png")
    Image.fromarray(np.tile(noise[:256], (1, 2, 1))[:, :640]).save(first / "nearest.png")  # as of 20 pairs of 64×64
    for number in range(1, 50):
        shutil.copytree(first, tmp_path / f"runs/run_{number:02d}", copy_function=os.link)
    start = time.process_time()
    page = page_of(tmp_path / "runs", tmp_path)
    assert time.process_time() - start < 10
    assert b"50 runs" in page and page.count(b"<img") == 100 and len(page) < 50 * 800_000


@needs_browser
def test_a_browser_runs_the_script_of_the_page(tmp_path):
    make_run(tmp_path / "runs/birds")
    page_of(tmp_path / "runs", tmp_path)
    assert "1 of 1 runs" in in_browser(tmp_path / "index.html")


@needs_browser
@pytest.mark.slow
def test_the_page_in_a_browser(tmp_path):
    for name in ("birds", "boats"):
        make_run(tmp_path / f"runs/{name}", run_name=name)
    page_of(tmp_path / "runs", tmp_path)
    with keyboard_on(tmp_path / "index.html") as page:
        assert page.value("document.getElementById('count').textContent") == "2 of 2 runs"
        page.tab_to("filter")
        for letter in "BOATS fin":
            page.press(letter)
        assert page.value("document.getElementById('count').textContent") == "1 of 2 runs"
        assert page.value("[...document.querySelectorAll('article')].map(run => run.hidden)") == [True, False]
    browse(f"--screenshot={tmp_path / 'seen.png'}", "--window-size=900,900", (tmp_path / "index.html").as_uri())
    seen = np.asarray(Image.open(tmp_path / "seen.png").convert("RGB"))
    assert (seen[0, 0] == 255).all() and len(np.unique(seen.reshape(-1, 3), axis=0)) > 10
