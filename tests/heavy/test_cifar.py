"""The real CIFAR-10, where this machine has it: from the archive to the set, in the official order."""

import subprocess
import sys

import numpy as np
import pytest

from tests.conftest import REPO
from vit.cli import run
from vit.config import TfdsData
from vit.data.sources import Tfds, describe

MAKER = REPO.parent / "shared" / "data" / "make_cifar10_archive.py"


@pytest.mark.skipif(not MAKER.is_file(), reason="the real CIFAR-10 isn't on this machine")
def test_the_real_set_is_in_the_order_of_tfds(tmp_path, capsys):
    import tensorflow_datasets as tfds

    archive = tmp_path / "cifar-10-binary.tar.gz"
    subprocess.run([sys.executable, str(MAKER), str(archive)], check=True)
    run(["prepare", "cifar10", "--data.dir", str(tmp_path / "sets"), "--archive", str(archive)])
    assert "is not the official archive" in capsys.readouterr().err
    official = tfds.data_source("cifar10", data_dir=str(tmp_path / "sets"), split="train")
    assert len(official) == 50_000
    assert official[0]["id"] == b"train_16399"  # as in the set that TFDS makes with TensorFlow
    train = Tfds(TfdsData(dir=str(tmp_path / "sets"), train="train"), "train")
    assert describe(train)["class_names"][:3] == ["airplane", "automobile", "bird"]
    examples = [train[i] for i in range(50_000)]
    assert np.bincount([example["label"] for example in examples]).tolist() == [5_000] * 10
    means = np.mean([example["image"].mean(axis=(0, 1)) for example in examples], axis=0) / 255
    np.testing.assert_allclose(means, (0.4914, 0.4822, 0.4465), atol=1e-4)
