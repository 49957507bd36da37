import json

import pytest
from PIL import Image

import evaluate
from metrics.realism import load_realism
from tests.metrics.test_realism import drawings

WORDS = ["configs/tasks/realism.yaml", "task.image_size=[16,16]", "task.steps=120"]


def folder(path, colored, seed, number=60):
    path.mkdir()
    for index, image in enumerate(drawings(number, colored, seed)):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path / f"{index:03d}.png")
    return str(path)


def test_a_command_trains_the_classifier_and_keeps_its_hash(tmp_path, capsys):
    paths = folder(tmp_path / "source", True, 0, 120), folder(tmp_path / "target", False, 1, 120)
    assert evaluate.main([*paths, *WORDS, f"out={tmp_path / 'out'}"]) == 0
    facts = json.loads((tmp_path / "out/realism.json").read_text())
    classifier = load_realism(str(tmp_path / "out/realism.pt"))
    assert facts["sha256"] == classifier.sha256 and facts["source_fingerprint"] != facts["target_fingerprint"]
    assert "accuracy" in capsys.readouterr().out and classifier(drawings(20, False, 3)).mean() > 0.9


@pytest.mark.parametrize(
    ("number", "same", "message"),
    [(10, False, "10 target images are too few"), (60, True, "share images"), (0, False, "1 folders of images; give two")],
)
def test_bad_folders_are_one_error_and_leave_nothing(number, same, message, tmp_path, capsys):
    paths = [folder(tmp_path / "source", True, 0)]
    if number:
        paths.append(paths[0] if same else folder(tmp_path / "target", False, 1, number))
    assert evaluate.main([*paths, *WORDS, f"out={tmp_path / 'out'}"]) != 0
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()
