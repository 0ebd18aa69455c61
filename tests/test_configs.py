"""Every recipe: its sizes, and its first steps as a user starts them, on made-up data."""

import io
import json
import math
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from tests.conftest import REPO, run
from tests.data.test_prepare import contents, pack
from vit.data import prepare as module
from vit.data.prepare import CIFARS, prepare
from vit.flags import load_config
from vit.models.vit import split
from vit.tasks import make_task

CONFIGS = sorted((REPO / "configs").glob("*.py"))
CIFAR = [path.name for path in CONFIGS if path.name.startswith("cifar10")]
DATA = {"class_names": [str(i) for i in range(10)], "image_size": [32, 32], "channels": 3}


def parameters(config, data=DATA):
    from flax import nnx

    task = make_task(config.task, config.model, data)
    shapes = nnx.eval_shape(lambda: split(task.build(nnx.Rngs(0)))[1])
    return sum(math.prod(x.shape) for x in shapes.values())


@pytest.fixture(scope="module")
def cifar(tmp_path_factory):
    """A set like CIFAR-10 with 100 images to train on and 20 to test on."""
    folder = tmp_path_factory.mktemp("cifar")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(
            module.CIFARS, "cifar10", replace(CIFARS["cifar10"], records=dict.fromkeys(CIFARS["cifar10"].records, 20))
        )
        prepare("cifar10", folder, pack(folder / "a.tar.gz", "cifar10", contents("cifar10")))
    return folder


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    """A set like ImageNet-1k: JPEGs of several sizes, 1,000 classes."""
    import tensorflow_datasets as tfds

    folder = tmp_path_factory.mktemp("imagenet")
    rng = np.random.default_rng(0)

    def examples(count):
        for i in range(count):
            height, width = rng.integers(60, 300, 2)
            jpeg = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(jpeg, "jpeg")
            yield i, {"image": jpeg.getvalue(), "label": 37 * i % 1000, "file_name": f"{i}.JPEG"}

    with tfds.core.registered.skip_registration():

        class Imagenet2012(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version("5.1.0")

            def _info(self):
                features = {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(num_classes=1000)}
                features = tfds.features.FeaturesDict({**features, "file_name": tfds.features.Text()})
                return tfds.core.DatasetInfo(builder=self, features=features)

            def _split_generators(self, dl_manager):
                return {"train": examples(200), "validation": examples(5)}

            def _generate_examples(self):
                raise NotImplementedError

    Imagenet2012(data_dir=str(folder), file_format="array_record").download_and_prepare()
    return folder


def test_sizes():
    counts = {name: parameters(load_config(REPO / "configs" / name)) for name in CIFAR}
    assert counts["cifar10.py"] <= 4_000_000
    assert counts["cifar10_cpu.py"] < 1_000_000
    data = {"class_names": [str(i) for i in range(1000)], "image_size": [224, 224], "channels": 3}
    assert parameters(load_config(REPO / "configs" / "imagenet.py"), data) == 22_050_664 - 384 - 197 * 384  # timm's S/16


def test_recipes_hold_out_what_they_choose_on_and_test_on_neither():
    for name in CIFAR:
        data = load_config(REPO / "configs" / name).data
        assert (data.train, data.val, data.test) == ("train[:45000]", "train[45000:]", "test")
        assert data.mean == (0.4914, 0.4822, 0.4465)


# Compiling all blocks takes a minute a recipe: tests/heavy does that, for the other recipes too.
SHALLOW = ["--model.depth", 1, "--model.dtype", "float32"]


def test_first_steps_on_cifar(cifar, tmp_path):
    first_steps_on_cifar("cifar10_cpu.py", cifar, tmp_path, *SHALLOW)


def first_steps_on_cifar(name, cifar, folder, *changes):
    phases = load_config(REPO / "configs" / name).schedule.sizes
    steps = 3 * (1 + len(phases))  # a few of each resolution
    run(
        "train.py", "--config", REPO / "configs" / name, "--data.dir", cifar, "--steps", steps, "--batch-size", 8,
        "--data.train", "train[:80]", "--data.val", "train[80:]", "--workdir", folder / "run", *changes, timeout=400,
    )  # fmt: skip
    figures = json.loads((folder / "run" / "eval.json").read_text())
    assert figures["examples"] == 20
    assert math.isfinite(figures["loss"])


def test_two_steps_of_imagenet(imagenet, tmp_path):
    two_steps_of_imagenet(imagenet, tmp_path, *SHALLOW)


def two_steps_of_imagenet(imagenet, folder, *changes):
    out, _ = run(
        "train.py", "--config", REPO / "configs" / "imagenet.py", "--data.dir", imagenet, "--steps", 2, "--batch-size", 4,
        "--workdir", folder / "run", *changes, timeout=400,
    )  # fmt: skip
    assert "198 images to train on, 2 to validate" in out
    assert json.loads((folder / "run" / "eval.json").read_text())["examples"] == 5


def test_a_missing_set_is_offered_with_the_command_that_makes_it(tmp_path):
    _, err = run("train.py", "--config", REPO / "configs" / "cifar10_cpu.py", "--data.dir", tmp_path, code=2)
    assert err.splitlines()[2].split(": ", 1)[1] == f"uv run vit prepare cifar10 --data.dir {tmp_path}"
