"""Every recipe: first steps as a user starts them, on made-up data; all but the CPU's with two blocks, to compile sooner."""

import io
import json
import math
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from tests.conftest import REPO, quickly_compiled, run
from tests.data.test_prepare import contents, pack
from tests.deploy.tiny import tiny_run
from tests.test_configs import CIFAR
from vit.data import prepare as module
from vit.data.prepare import CIFARS, prepare
from vit.flags import load_config


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


@pytest.mark.parametrize("name", CIFAR)
def test_first_steps_on_cifar(name, cifar, tmp_path):
    phases = load_config(REPO / "configs" / name).schedule.sizes
    steps = 3 * (1 + len(phases))  # a few of each resolution
    depth = [] if name == "cifar10_cpu.py" else ["--model.depth", 2]
    run(
        "train.py", "--config", REPO / "configs" / name, *depth, "--data.dir", cifar, "--steps", steps, "--batch-size", 8,
        "--data.train", "train[:80]", "--data.val", "train[80:]", "--workdir", tmp_path / "run",
        timeout=400, env=quickly_compiled(),
    )  # fmt: skip
    figures = json.loads((tmp_path / "run" / "eval.json").read_text())
    assert figures["examples"] == 20
    assert math.isfinite(figures["loss"])


@pytest.mark.parametrize("name", ["finetune_cifar10.py", "transfer_cifar10.py"])
def test_first_steps_of_fine_tuning(name, cifar, tmp_path):
    """From other weights than the recipe's, which are on the hub."""
    out, _ = run(
        "train.py", "--config", REPO / "configs" / name, "--weights", tiny_run(tmp_path / "weights"), "--data.dir", cifar,
        "--data.size", 16, "--steps", 3, "--batch-size", 16, "--schedule.warmup", 1, "--workdir", tmp_path / "run",
    )  # fmt: skip
    assert "98 images to train on, 2 to validate" in out
    assert "the head begins anew" in out
    assert json.loads((tmp_path / "run" / "eval.json").read_text())["examples"] == 20


def test_two_steps_of_imagenet(imagenet, tmp_path):
    out, _ = run(
        "train.py", "--config", REPO / "configs" / "imagenet.py", "--data.dir", imagenet, "--model.depth", 2,
        "--steps", 2, "--batch-size", 4, "--workdir", tmp_path / "run", timeout=400, env=quickly_compiled(),
    )  # fmt: skip
    assert "198 images to train on, 2 to validate" in out
    assert json.loads((tmp_path / "run" / "eval.json").read_text())["examples"] == 5
