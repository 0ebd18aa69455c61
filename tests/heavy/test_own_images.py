"""train.py and eval.py on a folder of JPEGs of several sizes, streamed and held."""

import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from tests.conftest import REPO, SMALL, run
from tests.test_programs import assert_same_state, final_state, three_lines

CONFIG = """
from vit.config import Config, FolderData, ViTConfig

def get_config():
    return Config(data=FolderData(size=16), model=ViTConfig(patch=4))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for split, count in (("train", 20), ("test", 7)):
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                out = io.BytesIO()
                small = Image.fromarray(rng.integers(0, 256, (3, 3, 3)).astype(np.uint8))
                small.resize(tuple(rng.integers(10, 60, 2)), Image.Resampling.BICUBIC).save(out, "jpeg")
                (root / split / name / f"{i}.jpg").write_bytes(out.getvalue())
    return root


def test_a_folder_of_images_trains_resumes_and_is_evaluated_whole(folder, tmp_path):
    (tmp_path / "own.py").write_text(CONFIG)
    command = ["--config", tmp_path / "own.py", *SMALL, f"--data.dir={folder}", f"--workdir={tmp_path / 'run'}"]
    before = {path: path.read_bytes() for path in folder.rglob("*.jpg")}
    out, _ = run("train.py", *command, cwd=REPO)
    assert "found class folders in test, train, val taken from train by content: 2 classes" in out
    figures = json.loads((tmp_path / "run" / "eval.json").read_text())
    assert (figures["split"], figures["examples"]) == ("test", 14)
    # Back to an earlier checkpoint, then on: the same bits.
    whole, other = final_state(tmp_path / "run"), tmp_path / "other"
    shutil.copytree(tmp_path / "run", other)
    shutil.rmtree(other / "checkpoints" / "12")
    out, _ = run("train.py", *command[:-1], f"--workdir={other}")
    assert f"resuming {other} from step 9" in out
    assert_same_state(final_state(other), whole)
    assert before == {path: path.read_bytes() for path in folder.rglob("*.jpg")}


def test_a_bad_image_is_named(folder, tmp_path):
    (tmp_path / "own.py").write_text(CONFIG)
    shutil.copytree(folder, tmp_path / "images")
    (tmp_path / "images" / "train" / "cat" / "gone.jpg").symlink_to("nowhere")
    command = ["--config", tmp_path / "own.py", *SMALL, f"--data.dir={tmp_path / 'images'}", f"--workdir={tmp_path / 'run'}"]
    assert "it is a link that leads nowhere" in three_lines(run("train.py", *command, code=2)[1])
