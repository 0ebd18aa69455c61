"""Every recipe: its sizes, and its first steps as a user starts them, on made-up data."""

import math

from tests.conftest import REPO, run
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


def test_a_missing_set_is_offered_with_the_command_that_makes_it(tmp_path):
    _, err = run("train.py", "--config", REPO / "configs" / "cifar10_cpu.py", "--data.dir", tmp_path, code=2)
    assert err.splitlines()[2].split(": ", 1)[1] == f"uv run vit prepare cifar10 --data.dir {tmp_path}"
