"""What `vit predict` takes for one large image, in a process of its own."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tests.conftest import REPO, program_environment
from tests.deploy.tiny import tiny_run
from vit.config import SGD, Config, MaskData, SegmentationConfig, ViTConfig

MOST = 4e9  # bytes
PROGRAM = """
import resource, sys
from vit import cli
cli.run(["predict", *sys.argv[1:]])
print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.parametrize(("view", "classes"), [("whole", 19), ("sliding", 150)])
def test_two_megapixels_take_less_than_4_gigabytes(tmp_path, view, classes):
    data = MaskData(size=(512, 512), view=view)
    config = Config(batch_size=16, data=data, task=SegmentationConfig(), model=ViTConfig.variant("S/16"), optim=SGD())
    names = [f"class {k}" for k in range(classes)]
    described = {"dataset": "streets", "class_names": names, "image_size": [512, 512], "channels": 3, "view": view}
    run = tiny_run(tmp_path / "run", config, described)
    pixels = np.random.default_rng(0).integers(0, 256, (64, 128, 3), np.uint8)
    Image.fromarray(pixels).resize((2048, 1024)).save(tmp_path / "street.png")
    flags = ["--workdir", run, tmp_path / "street.png", "--out", tmp_path / "out", "--save-images"]
    env = {**program_environment(), "PYTHONPATH": str(REPO)}
    done = subprocess.run([sys.executable, "-c", PROGRAM, *map(str, flags)], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    peak = 1024 * int(done.stdout.split()[-1])  # Linux counts in kilobytes
    print(f"{view}, {classes} classes: {peak / 1e9:.2f} GB")
    with Image.open(tmp_path / "out" / "predictions" / "masks" / "000001-street.png") as mask:
        assert mask.size == (2048, 1024)
    assert peak < MOST


PLAN = """
import jax, jax.numpy as jnp
import vit
from vit.models.vit import merge, split
graph, params = split(vit.create("Ti/4", width=128, heads=4, mlp=256, depth=6, remat=True, image_size=32, classes=5))
for devices in (1, 2):
    jax.device_count = lambda: devices
    loss = lambda params: jnp.sum(merge(graph, params)(jnp.ones((64, 32, 32, 3)))[0] ** 2)
    print(jax.jit(jax.grad(loss)).lower(params).compile().memory_analysis().temp_size_in_bytes)
"""


def test_a_step_on_one_cpu_holds_biases_no_longer_than_needed():
    done = subprocess.run(
        [sys.executable, "-c", PLAN], env={**program_environment(), "PYTHONPATH": str(REPO)}, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    one, several = map(int, done.stdout.split())
    assert one < 0.7 * several
