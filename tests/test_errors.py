"""Every error that a user may see, provoked for real and compared with its golden text in tests/golden/errors.txt.

`python -m tests.test_errors` writes the golden texts anew, after a deliberate change: read the diff before you commit it.
"""

import ast
import contextlib
import errno
import functools
import http.server
import importlib.util
import io
import itertools
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import tempfile
import threading
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from jax.experimental import topologies

import eval as eval_program
import vit
from tests.conftest import REPO, SMALL, program_environment
from tests.data import box_faults, mask_faults
from tests.data.faults import folders
from tests.data.test_folder import write
from tests.data.test_prepare import FAULTS, Server, contents, pack
from tests.deploy.tiny import digit_files, tiny_run
from tests.training.test_checkpoint import flip, meta, state
from tests.training.test_loop import Run
from tests.weights import faults as weights_faults
from tests.weights.test_start import pretrained
from vit import cli, weights
from vit.config import (
    SGD,
    ClassificationConfig,
    Config,
    DigitsData,
    EomtHead,
    FolderData,
    LinearHead,
    MaskData,
    ScenesData,
    SegmentationConfig,
    TfdsData,
    ViTConfig,
    from_json,
    to_json,
    validate,
)
from vit.data import check as check_module
from vit.data import images as images_module
from vit.data import prepare as prepare_module
from vit.data import prepared as prepared_module
from vit.data import sources as sources_module
from vit.data.augment import preprocessing
from vit.data.batches import once
from vit.data.decode import decode
from vit.data.sources import Digits, Tfds, describe, open_source
from vit.deploy.images import listed
from vit.deploy.segment import MaskPrediction
from vit.errors import UserError
from vit.flags import parse_config
from vit.tasks import make_task
from vit.training import probe, storage
from vit.training.checkpoint import Checkpoints, Found
from vit.training.defaults import resolve
from vit.training.estimate import topology
from vit.training.evaluate import Trained, evaluate_split, open_run
from vit.training.hosts import joined
from vit.training.sharding import check_batch_size, make_mesh
from vit.training.stop import Stop
from vit.training.storage import open_folder
from vit.training.trained import trained
from vit.training.workdir import check_resumable, locked
from vit.weights import eomt, start
from vit.weights.pretrained import Found as FoundWeights

GOLDEN = Path(__file__).parent / "golden" / "errors.txt"
SOURCES = [*sorted((REPO / "vit").rglob("*.py")), REPO / "train.py", REPO / "eval.py"]


class At(NamedTuple):
    """Where a case happens: a folder of its own, and what undoes its patches."""

    folder: Path
    patch: pytest.MonkeyPatch

    def file(self, name: str = "file", text: str = "") -> Path:
        (self.folder / name).write_text(text)
        return self.folder / name


# ---- ways to provoke ----


def flags(*args: str) -> Callable[[At], Any]:
    """train.py's command line on the digits."""
    return lambda at: parse_config(args, REPO / "configs" / "digits.py")


def config_at(path: Path) -> None:
    parse_config(["--config", str(path)], Path())


def config_file(text: str) -> Callable[[At], Any]:
    return lambda at: config_at(at.file("mine.py", f"from vit.config import *\n{text}"))


def config_with(arguments: str) -> Callable[[At], Any]:
    return config_file(f"def get_config():\n    return Config({arguments})")


def read(configuration: Any) -> Callable[[At], Any]:
    return lambda at: from_json(configuration, "runs/digits-s0, step 12")


def command(*args: str) -> Callable[[At], Any]:
    """The `vit` command; {folder} in its arguments is the case's."""
    return lambda at: cli.run([arg.format(folder=at.folder) for arg in args])


def vit_program(at: At, *args: str) -> None:
    """The same up to its exit, as `told_to_the_user` has it."""
    at.patch.setattr(sys, "argv", ["vit", *args])
    cli.main()


def failing(number: int, *names: str) -> Callable[[At], Any]:
    """`vit prepare` where looking at the free room fails."""

    def provoke(at: At) -> None:
        def fail(folder: Path) -> None:
            raise OSError(number, os.strerror(number), *names)

        at.patch.setattr(shutil, "disk_usage", fail)
        vit_program(at, "prepare", "cifar10", "--data.dir", str(at.folder))

    return provoke


def evaluation(at: At, **wanted: Any) -> None:
    stop: Any = None
    eval_program.main(eval_program.Evaluation(**wanted), stop)


def small(at: At) -> None:
    """The official archives, with 20 records in a file."""
    for name, cifar in prepare_module.CIFARS.items():
        at.patch.setitem(prepare_module.CIFARS, name, replace(cifar, records=dict.fromkeys(cifar.records, 20)))


def archive(change: Callable[[dict], dict] = lambda files: files, before: Any = lambda tar: None) -> Callable[[At], Any]:
    """Prepare from an archive whose files are changed, or that has something before them."""

    def provoke(at: At) -> None:
        small(at)
        path = pack(at.folder / "a.tar.gz", "cifar10", change(contents("cifar10")), before)
        prepare_module.prepare("cifar10", at.folder / "sets", path)

    return provoke


def truncated(at: At) -> None:
    small(at)
    path = pack(at.folder / "a.tar.gz", "cifar10", contents("cifar10"))
    os.truncate(path, path.stat().st_size // 2)
    prepare_module.prepare("cifar10", at.folder / "sets", path)


def download(fail: str) -> Callable[[At], Any]:
    def provoke(at: At) -> None:
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            at.patch.setattr(Server, "fail", fail)
            url = f"http://127.0.0.1:{server.server_port}/cifar-10-binary.tar.gz"
            at.patch.setitem(prepare_module.CIFARS, "cifar10", replace(prepare_module.CIFARS["cifar10"], url=url))
            try:
                prepare_module.prepare("cifar10", at.folder)
            finally:
                server.shutdown()

    return provoke


def no_room(at: At) -> None:
    usage = shutil.disk_usage(at.folder)._replace(free=5_000_000)
    at.patch.setattr(shutil, "disk_usage", lambda folder: usage)
    prepare_module.prepare("cifar10", at.folder)


def full_disk(at: At) -> None:
    def full(*_: Any) -> None:
        raise RuntimeError("write() failed: No space left on device")  # the record writer's words

    at.patch.setattr(prepare_module, "_builder", full)
    archive()(at)


def without_tensorflow(at: At) -> None:
    at.patch.setitem(sys.modules, "tensorflow", None)
    prepare_module.prepare("mnist", at.folder)


def prepared(file: str = "", old: str = "", new: str = "", **config: Any) -> Callable[[At], Any]:
    """Open a prepared set, one of whose files of metadata is changed."""

    def provoke(at: At) -> None:
        archive()(at)
        if file:
            path = next((at.folder / "sets").rglob(file))
            changed = re.sub(old, new, path.read_text())
            assert changed != path.read_text()
            path.write_text(changed)
        Tfds(TfdsData(dir=str(at.folder / "sets"), **config), "val")

    return provoke


def same_names(at: At) -> None:
    source = Digits("val")
    source.class_names = ["three"] * 10
    describe(source)


def lost(at: At) -> None:
    # Made when the module is imported; tests/test_hosts.py sees it printed when a process is killed.
    raise runpy.run_path(str(REPO / "vit" / "training" / "hosts.py"))["LOST"]


def no_such_slice(at: At) -> None:
    def refuse(name: str, platform: str) -> None:
        raise RuntimeError(f"INVALID_ARGUMENT: no default TPU topology for {name!r}")

    at.patch.setattr(importlib.util, "find_spec", lambda name: object())
    at.patch.setattr(topologies, "get_topology_desc", refuse)
    topology("v5e:3x5")


def distributed(at: At) -> None:
    at.patch.setenv("JAX_NUM_PROCESSES", "two")
    with joined(True):
        pass


def saved(at: At, *steps: int) -> Path:
    """A run's folder with checkpoints."""
    with Checkpoints(at.folder / "run" / "checkpoints") as checkpoints:
        for step in steps:
            checkpoints.save(step, state(step), meta(step))
            checkpoints.wait()
    return at.folder / "run"


def damaged(at: At, *steps: int, then: str) -> None:
    run = saved(at, *steps)
    flip(run / "checkpoints" / str(steps[0]) / "meta.json")
    open_run(run, then)


def save_below_a_file(at: At) -> None:
    with Checkpoints(at.file() / "checkpoints") as checkpoints:
        checkpoints.save(3, state(), meta(3))


def other_data(**differing: Any) -> Callable[[At], Any]:
    """Evaluate a model of other data on the digits."""
    data = {**describe(Digits("val")), **differing}
    model = Trained(Config(), None, {}, {"data": data}, 3, Path("runs/digits-s0"), [])
    stop: Any = None
    return lambda at: evaluate_split(model, "val", stop)


def coloured(at: At) -> None:
    """A probe of a model of colours on grey digits."""
    task: Any = types.SimpleNamespace(shape={"channels": 3})
    probe.probe(Trained(Config(), task, {}, {}, 3, Path("runs/digits-s0"), []), "knn", "val", [], Stop())


def blind(at: At) -> None:
    """A probe of a model whose features are NaN."""
    at.patch.setattr(probe, "over", lambda *_: iter([{"outputs": np.full((2, 3), np.nan), "label": np.zeros(2, int)}]))
    task: Any = types.SimpleNamespace(shape={"channels": 1})
    probe.probe(Trained(Config(), task, {}, {}, 3, Path("runs/digits-s0"), []), "knn", "val", [], Stop())


def diverging(at: At) -> None:
    with Run(at.folder, bad=range(5, 1000)) as run:
        run.loop.run()


def resumed(**changes: Any) -> Callable[[At], Any]:
    begun = Config(steps=50)
    return lambda at: check_resumable(replace(begun, **changes), at.folder, Found(12, {"config": to_json(begun)}, {}))


def gone(at: At) -> None:
    at.file("metrics.jsonl", '{"step": 10, "split": "train"}\n')
    check_resumable(Config(), at.folder, None)


def lock(*paths: Path) -> None:
    with contextlib.ExitStack() as held:
        for path in paths:
            held.enter_context(locked(path))


def compared(at: At) -> None:
    """Two runs of nothing yet, compared in a page below a file."""
    for name in ("a", "b"):
        (at.folder / name).mkdir()
        at.file(f"{name}/config.json", json.dumps(to_json(Config())))
    cli.run(["report", str(at.folder / "a"), str(at.folder / "b"), "--out", str(at.file() / "report.html")])


def bad_tar(fault: str) -> Callable[[At], Any]:
    return archive(before=FAULTS[fault][0])


def program(*args: str) -> Callable[[At], Any]:
    """A program of its own, for what this process can't be asked any more; its last words."""

    def provoke(at: At) -> None:
        call = [sys.executable, str(REPO / args[0]), *args[1:]]
        done = subprocess.run(call, cwd=at.folder, env=program_environment(), capture_output=True, text=True, check=False)
        print(*done.stderr.splitlines()[-3:], sep="\n", file=sys.stderr)
        sys.exit(done.returncode)

    return provoke


PATHS = ["blocks/0/attn/qkv/kernel", "blocks/0/attn/qkv/bias", "cls_token", "head/kernel", "head/bias"]


def no_run_in_a_store(at: At) -> None:
    at.patch.setattr(storage, "open_folder", lambda text: at.folder)
    weights.load("gs://bucket/run")


def contradicted(at: At) -> None:
    """A flag for the model's width beside weights of another width."""
    config = parse_config(["--weights", "w", "--model.width", "32"], REPO / "configs" / "digits.py")
    at.patch.setattr(start, "load", lambda text: pretrained())
    start.settle(config, at.folder)


def head_of_nothing(at: At) -> None:
    """A linear probe without weights."""
    start.settle(parse_config([], REPO / "configs" / "probe.py"), at.folder)


def damaged_record(at: At) -> None:
    """A prepared set whose second image is no image."""
    archive()(at)
    at.patch.setattr(sources_module, "decode", lambda content: decode(content[:40]))
    Tfds(TfdsData(dir=str(at.folder / "sets"), train="train[:70]", val="train[70:]", stream=True), "val")[1]


TWO = {f"{split}/{name}/1.jpg": i for i, (split, name) in enumerate(itertools.product(("train", "val"), ("cat", "dog")))}


def images(at: At, files: dict[str, Any] | None = None, split: str = "train", **changes: Any) -> None:
    """Read a whole split of a folder with these files."""
    config = FolderData(**{"dir": str(write(at.folder, files or {})), "size": 8, **changes})
    for _ in once(open_source(config, split), 4):
        pass


def tfds_set(at: At, file: str, old: str, new: str) -> None:
    archive()(at)
    (path,) = at.folder.glob(f"sets/*/*/{file}")
    path.write_text(path.read_text().replace(old, new))
    images(at, dir=str(path.parent))


def hugging_face(at: At, found: Any) -> None:
    """Load a set where the package is absent (None), fails, or finds this."""

    def load(name: str) -> Any:
        if isinstance(found, Exception):
            raise found
        return found

    package: Any = types.ModuleType("datasets")
    package.exceptions = types.ModuleType("datasets.exceptions")
    package.exceptions.DatasetsError = OSError
    package.Image = package.ClassLabel = str
    package.load_dataset, package.disable_progress_bars = load, lambda: None
    at.patch.setitem(sys.modules, "datasets", package if found else None)
    at.patch.setitem(sys.modules, "datasets.exceptions", package.exceptions)
    images(at, dir="hf:cats/dogs")


def predicted(*args: str, run: str = "{run}", csv: str = "") -> Callable[[At], Any]:
    """`vit predict` in the case's folder; {file} is a digit, {bad} no image."""

    def provoke(at: At) -> None:
        at.patch.chdir(at.folder)
        at.patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
        (file,) = digit_files(at.folder / "digits", 1)
        names = {"folder": at.folder, "file": file, "bad": at.file("bad.png"), "run": tiny_run(at.folder / "run")}
        if csv:
            at.file("predictions.csv", csv)
        cli.run(["predict", *(arg.format(**names) for arg in ("--workdir", run, *args))])

    return provoke


BLACK = np.zeros((5, 6, 3), np.uint8)
OBJECTS = SegmentationConfig(head=EomtHead(output="panoptic", blocks=1))


def task_of(config: Any, more: dict[str, Any]) -> Any:
    """A task on data of two classes."""
    data = {"dataset": "mine", "class_names": ["cat", "dog"], "image_size": [32, 32], "channels": 3}
    return make_task(config, ViTConfig(), data | more)


def segmenting(*args: str) -> Callable[[At], Any]:
    """A command line after the config of digit scenes."""
    config = REPO / "configs" / "segment_digits.py"
    return lambda at: parse_config(["--config", str(config), *args], config)


def masked(*args: str, **files: str) -> Callable[[At], Any]:
    """`vit predict` of a segmentation run in the case's folder, where there are files already, by the ends of their names."""

    def provoke(at: At) -> None:
        at.patch.chdir(at.folder)
        (file,) = digit_files(at.folder / "digits", 1)
        config = Config(data=ScenesData(), task=SegmentationConfig(head=LinearHead()), model=SEGMENTER)
        run = tiny_run(at.folder / "run", config)
        for kind, text in files.items():
            names = {"classes": "classes.txt", "mask": f"masks/000001-{Path(file).stem}.png"}
            path = at.folder / "predictions" / names[kind]
            path.parent.mkdir(parents=True)
            path.write_text(text)
        cli.run(["predict", "--workdir", str(run), str(file), *args])

    return provoke


SEGMENTER = ViTConfig(patch=8, width=16, depth=1, heads=2, mlp=32, pool="mean")


def checked(out: str, change: Callable[[Path], object]) -> Callable[[At], Any]:
    """`vit check` of cats and dogs, with something changed."""

    def provoke(at: At) -> None:
        root = folders(at.folder / "pets")
        change(root)
        cli.run(["check", str(root), "--out", str(root / out)])

    return provoke


def bad_validation(at: At) -> None:
    """As `vit check` judges it, if so many may be skipped."""
    at.patch.setattr(check_module, "MOST_BAD", 0.9)
    root = folders(at.folder / "pets")
    for path in (root / "val").rglob("*.png"):
        path.write_bytes(b"")
    cli.run(["check", str(root), "--out", str(at.folder / "found"), "--data.bad-images", "skip"])


CASES: dict[str, Callable[[At], Any]] = {
    # the command line
    "unknown flag": flags("--lr", "3"),
    "unexpected argument": flags("digits"),
    "flag that takes no value": flags("--fsdp=yes"),
    "value of another type": flags("--steps", "many"),
    "values of another type": flags("--data.mean", "0.1", "grey"),
    "missing value": flags("--steps", "--seed", "1"),
    "empty value": flags("--steps="),
    "unknown choice": flags("--model.dtype", "float16"),
    "value out of range": flags("--ema", "1"),
    "heads that don't divide the width": flags("--model.heads", "5"),
    "width that sin-cos can't fill": flags("--model.width=66", "--model.heads=2", "--model.position=sincos"),
    "batch that can't be cut": flags("--accumulate", "3"),
    "sizes without shares": flags("--schedule.sizes", "4"),
    "shares that go back": flags("--schedule.sizes", "4", "4", "--schedule.until", "0.5", "0.2"),
    "size without whole patches": flags("--model.patch=4", "--schedule.sizes=6", "--schedule.until=0.5"),
    "no mean": flags("--data.mean"),
    "mean and deviation of unequal length": flags("--data.mean", "0.1", "0.2"),
    # the config file
    "config without file": flags("--config"),
    "config file that isn't there": lambda at: config_at(at.file("digits.py").with_name("digit.py")),
    "config file in no folder": lambda at: config_at(at.folder / "none" / "x.py"),
    "config file that fails": config_file("def get_config():\n    return Confg()"),
    "config file without get_config": config_file("steps = 3"),
    "config file that returns nothing": config_file("def get_config():\n    Config()"),
    "config file that returns another thing": config_file("def get_config():\n    return 3"),
    "another class in a config file": config_with("model=AdamW()"),
    "a name for a class in a config file": config_with("optim='adam'"),
    "a number for a tuple in a config file": config_with("data=DigitsData(mean=0.3)"),
    "a text for a number in a config file": config_with("steps='3'"),
    "unknown variant in a config file": config_with("model=ViTConfig.variant('XL/16')"),
    "random crops in memory": config_with("data=TfdsData(size=224)"),
    "configuration of a newer version": read({**to_json(Config()), "soup": 1}),
    "configuration of unknown data": read({"type": "Config", "data": {"type": "Moon"}}),
    # models from Python
    "unknown variant": lambda at: vit.create("S16"),
    "model of no size": lambda at: vit.create("S/16", classes=-1),
    "image that patches don't tile": lambda at: vit.create("S/16", image_size=100),
    # the vit command
    "unknown command": command("inform"),
    "info on an image size": command("info", "S/16", "big"),
    "info on a folder without a run": command("info", "{folder}"),
    # the operating system
    "a folder below a file": lambda at: vit_program(at, "prepare", "cifar10", "--data.dir", str(at.file() / "sets")),
    "no permission": failing(errno.EACCES, "/data/sets"),
    "disk full somewhere": failing(errno.ENOSPC),
    "a folder in a file's place": failing(errno.EISDIR, "/data/sets"),
    # preparing data
    "archive of another set": command("prepare", "mnist", "--archive", "{folder}/a.tar.gz"),
    "archive that isn't there": command("prepare", "cifar10", "--data.dir", "{folder}", "--archive", "{folder}/a.tar.gz"),
    "no room for a set": no_room,
    "disk full while writing a set": full_disk,
    "download not found": download("missing"),
    "download of something else": download(""),
    "archive with a link": bad_tar("a link"),
    "archive with a path that leads elsewhere": bad_tar("a traversal path"),
    "archive with a member twice": bad_tar("twice the same"),
    "archive with a large readme": bad_tar("a large readme"),
    "archive with a member of a wrong size": bad_tar("a wrong size"),
    "archive that is a bomb": bad_tar("a bomb"),
    "archive cut short": truncated,
    "archive without a member": archive(lambda files: {k: x for k, x in files.items() if k != "data_batch_3.bin"}),
    "archive with an unknown label": archive(lambda files: {**files, "test_batch.bin": b"\x0a" + files["test_batch.bin"][1:]}),
    "archive with too few class names": archive(lambda files: {**files, "batches.meta.txt": b"cat\ndog\n"}),
    "unknown set": lambda at: prepare_module.prepare("cifar11", at.folder),
    "set that needs TensorFlow": without_tensorflow,
    # reading data
    "set that isn't prepared": lambda at: Tfds(TfdsData(name="mnist", dir=str(at.folder)), "train"),
    "set without labels": prepared("features.json", '"label": {', '"boxes": {'),
    "set of many sizes": prepared("features.json", r'"dimensions": \[\s*"32",\s*"32"', '"dimensions": ["-1", "-1"'),
    "set for reading in order": prepared("dataset_info.json", '"array_record"', '"tfrecord"'),
    "set with a damaged record": damaged_record,
    "set without the split": prepared(val="validation"),
    "classes of the same name": same_names,
    "statistics of other channels": lambda at: preprocessing(DigitsData(mean=(0.1, 0.2, 0.3)), describe(Digits("val"))),
    # starting to train
    "unknown store": lambda at: open_folder("ftp://bucket/run"),
    "store without its package": program("train.py", *SMALL, "--workdir=gs://bucket/run"),
    "batch that the devices can't share": lambda at: check_batch_size(72, 2, make_mesh()),
    "devices of a host that don't make rows": lambda at: make_mesh(jax.devices(), 3),
    "an option without its value": lambda at: cli.run(["estimate", "--config", "configs/digits.py", "--topology"]),
    "estimate of nothing": lambda at: cli.run(["estimate", "--topology", "v5e:2x2"]),
    "estimate for TPUs without libtpu": lambda at: topology("v5e:2x2"),
    "no such slice of TPUs": no_such_slice,
    "no coordinator": program("train.py", "--distributed"),
    "a count of processes that isn't one": distributed,
    "another process lost": lost,
    "run's folder below a file": lambda at: lock(at.file() / "run"),
    "two trainers in a folder": lambda at: lock(at.folder, at.folder),
    # going on
    "run whose checkpoints are gone": gone,
    "run with another seed": resumed(seed=1),
    "run with other settings": resumed(batch_size=64, seed=1),
    "run with another optimiser": resumed(optim=SGD()),
    "run that is further": resumed(steps=5),
    "no whole checkpoint": lambda at: damaged(at, 1, then="last"),
    # training
    "save that fails": save_below_a_file,
    "training that diverges": diverging,
    # evaluating
    "evaluation of nothing": lambda at: evaluation(at),
    "few shots without a probe": lambda at: evaluation(at, workdir="runs/digits-s0", few_shot="1,5"),
    "weights without a probe": lambda at: evaluation(at, weights="weights.safetensors"),
    "weights without images": lambda at: evaluation(at, weights="weights.safetensors", probe="knn"),
    "probe of the training split": lambda at: probe.probe(
        Trained(Config(), None, {}, {}, 3, at.folder, []), "knn", "train", [], Stop()
    ),
    "probe of other channels": coloured,
    "checkpoint of weights": lambda at: evaluation(at, weights="w", probe="knn", checkpoint="7"),
    "images of a run's probe": lambda at: evaluation(at, workdir="w", probe="knn", data=eval_program.Images(size=9)),
    "few shots of none": lambda at: evaluation(at, workdir="runs/digits-s0", probe="knn", few_shot="0,5"),
    "features that aren't finite": blind,
    "evaluation of a folder without a run": lambda at: evaluation(at, workdir=str(at.folder)),
    "checkpoint that isn't there": lambda at: open_run(saved(at, 1, 2), "5"),
    "checkpoint that is damaged": lambda at: damaged(at, 1, 2, then="1"),
    "report on no run": command("report", "{folder}"),
    "report below a file": compared,
    "model of fewer classes": other_data(class_names=["cat", "dog"]),
    "model of other classes": other_data(class_names=[*"01234567", "nine", "8"]),
    "model of other channels": other_data(channels=3),
    # fine-tuning
    "weights in a store without a run": no_run_in_a_store,
    "model flag against the weights": contradicted,
    "linear probe without weights": head_of_nothing,
    "pattern that matches nothing": lambda at: trained(Config(freeze=("block/*",)), PATHS),
    "all frozen": lambda at: trained(Config(freeze=("*",)), PATHS),
    "setting that isn't chosen": lambda at: resolve(Config(auto=("optim.lrr",)), 100, 1000, True),
    # pretrained weights
    **weights_faults.CASES,
    # segmentation
    **{f"masks: {name}": (lambda at, case=case: case(at.folder)) for name, case in mask_faults.CASES.items()},
    "segmentation of labels": lambda at: task_of(SegmentationConfig(), {}),
    "classification of masks": lambda at: task_of(ClassificationConfig(), {"view": "whole"}),
    "objects of masks without any": lambda at: task_of(OBJECTS, {"view": "whole", "things": None}),
    "objects in windows": lambda at: task_of(OBJECTS, {"view": "sliding", "things": [True, True]}),
    "attention of a segmentation": masked("--attention"),
    "threshold of a segmentation": masked("--threshold=0.5"),
    "masks of other classes": masked(classes="cat\ndog\n"),
    "another mask of this name": masked(mask="my own"),
    "an overlay on another image": lambda at: MaskPrediction(np.zeros((4, 4), np.uint8), ["cat"]).overlay(BLACK),
    "EoMT of another activation": lambda at: eomt.understand(FoundWeights({}, {"hidden_act": "relu6"}, {}, {}, "", "w")),
    "an augmentation that leaves masks behind": segmenting("--augment.cutmix", "1"),
    "a stride that isn't reached": segmenting("--task.head.stride", "3"),
    "a size of three": lambda at: validate(Config(data=MaskData(size=(32, 32, 32)))),
    "a size that patches don't tile": lambda at: validate(Config(data=MaskData(size=(32, 50)))),
    "a scale that goes back": lambda at: validate(Config(data=MaskData(size=(32, 32), scale=(2.0, 1.0)))),
    "more joined blocks than blocks": lambda at: validate(Config(task=SegmentationConfig(head=EomtHead(blocks=13)))),
    # sets with boxes
    **{name: (lambda at, case=case: case(at.folder)) for name, case in box_faults.CASES.items()},
    "a set that is checked as something else": command("check", "{folder}", "--as", "cats"),
    # image sets of one's own
    "no folder of images": lambda at: images(at, dir=""),
    "folder of images that isn't there": lambda at: images(at, dir=str(at.folder / "none")),
    "folder without images": lambda at: images(at),
    "images in no class folder": lambda at: images(at, {"a.jpg": 1}),
    "class that can't be trained on": lambda at: images(at, {**TWO, "val/fox/1.jpg": 2}),
    "split that a folder lacks": lambda at: images(at, TWO, split="test"),
    "bad image": lambda at: images(at, {**TWO, "val/cat/2.jpg": b"hello"}, split="val"),
    "too many bad images": lambda at: images(at, {**TWO, "val/cat/2.jpg": b"hello"}, split="val", bad_images="skip"),
    "a split of bad images": lambda at: (
        at.patch.setattr(images_module, "MOST_BAD", 0.9),
        images(at, {**TWO, "val/cat/1.jpg": b"hello", "val/dog/1.jpg": b"hello"}, split="val", bad_images="skip"),
    ),
    "several tables": lambda at: images(at, {"a.csv": "path,label\n", "b.csv": "path,label\n"}),
    "table without images": lambda at: images(at, {"a.csv": "path,label\n"}),
    "table without a column": lambda at: images(at, {"a.csv": "path,kind\n"}, dir=str(at.folder / "a.csv")),
    "several prepared sets": lambda at: images(at, {"a/1.0.0/features.json": "", "b/1.0.0/features.json": ""}),
    "prepared folder without labels": lambda at: tfds_set(at, "features.json", '"label": {', '"boxes": {'),
    "prepared folder for reading in order": lambda at: tfds_set(at, "dataset_info.json", '"array_record"', '"tfrecord"'),
    "prepared folder without images": lambda at: prepared_module._listed("", at.folder, {}, [], Any, Any),
    "no package for Hugging Face's sets": lambda at: hugging_face(at, None),
    "Hugging Face set that can't be loaded": lambda at: hugging_face(at, ValueError("no such set")),
    "Hugging Face set without labels": lambda at: hugging_face(at, {"train": types.SimpleNamespace(features={"text": 0})}),
    # predicting
    "prediction without a run": command("predict", "a.png"),
    "prediction of nothing": command("predict", "--workdir", "x"),
    "prediction of a file that isn't there": command("predict", "--workdir", "x", "{folder}/a.png"),
    "prediction of a folder without images": command("predict", "--workdir", "x", "{folder}", "--out", "{folder}/out"),
    "prediction of a pattern that nothing matches": command("predict", "--workdir", "x", "{folder}/*.png"),
    "prediction of a model that isn't there": predicted("{file}", run="{folder}/nowhere"),
    "results among the images": predicted("."),
    "results over another file": predicted("{file}", csv="my own"),
    "attention of a block that isn't there": predicted("{file}", "--block=2"),
    "no paths on stdin": predicted("-"),
    "prediction of bad files": predicted("{file}", "{bad}"),
    "prediction of a bad file in Python": lambda at: vit.load(tiny_run(at.folder / "run")).predict(at.file("bad.png")),
    "prediction of a number": lambda at: listed(5),
    "prediction of what is no image": lambda at: vit.load(tiny_run(at.folder / "run")).predict(np.zeros((8, 8, 3))),
    # checking data
    "findings in the data set": checked(".", lambda root: None),
    "a link that leads back, checked": checked("../found", lambda root: (root / "train" / "cat" / "back").symlink_to("..")),
    "findings in a file": checked("../found", lambda root: (root.parent / "found").touch()),
    "all images to validate with bad": bad_validation,
    "bad files": checked("../found", lambda root: (root / "train" / "cat" / "empty.png").touch()),
}  # fmt: skip


# ---- what they say ----

REACHED: set[tuple[str, int]] = set()  # file and line at which an error was made


@functools.cache
def said(name: str) -> str:
    """The text of a case's error, with placeholders for what differs from run to run."""
    make = UserError.__init__

    def noting(self: UserError, *args: Any) -> None:
        caller = sys._getframe(1)
        REACHED.add((caller.f_code.co_filename, caller.f_lineno))
        make(self, *args)

    with (
        tempfile.TemporaryDirectory() as folder,
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()) as printed,
    ):
        patch.setattr(UserError, "__init__", noting)
        folder = os.path.realpath(folder)
        try:
            CASES[name](At(Path(folder), patch))
            text = "no error"
        except UserError as error:
            text = str(error)
        except SystemExit:  # the whole program was asked
            text = printed.getvalue().strip()
    text = text.replace(folder, "<folder>").replace(str(REPO), "<repository>")
    return re.sub(r"(?<=127\.0\.0\.1:)\d+", "<port>", text)


def golden() -> dict[str, str]:
    sections = GOLDEN.read_text().split("## ")[1:]
    return {name: text.strip("\n") for name, _, text in (section.partition("\n") for section in sections)}


def write_golden() -> None:
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text("\n".join(f"## {name}\n{said(name)}\n" for name in CASES))


@pytest.mark.parametrize("name", CASES)
def test_the_error_is_the_golden_one(name):
    assert said(name) == golden()[name]


def test_every_golden_text_has_its_case():
    assert list(golden()) == list(CASES)


def sites() -> dict[str, tuple[str, range]]:
    """Every place that makes a `UserError`: its name, its file and lines."""
    found = {}
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == "UserError":
                lines = range(node.lineno, node.end_lineno + 1)
                found[f"{path.relative_to(REPO)}:{node.lineno}: {ast.unparse(node)}"] = (str(path), lines)
    return found


def test_every_place_that_makes_an_error_has_a_case():
    for name in CASES:
        said(name)
    assert len(sites()) > 40
    missed = [
        site for site, (path, lines) in sites().items() if not any(file == path and line in lines for file, line in REACHED)
    ]
    assert not missed, "no case in tests/test_errors.py reaches\n" + "\n".join(missed)


# What a user can do starts with one of these.
VERBS = {
    "add", "bring", "check", "choose", "define", "did", "evaluate", "give", "keep", "leave", "lengthen", "lower", "make",
    "mend", "move", "prepare", "put", "remove", "rename", "resize", "return", "run", "save", "see", "set", "take", "try", "use",
    "uv", "vit", "wait",
}  # fmt: skip
NOISE = r"Traceback|<class|<function|Path\(|PosixPath|\bNone\b|  |\[Errno|invalid literal|object at 0x|urlopen|\w+Error\("


@pytest.mark.parametrize("name", CASES)
def test_the_golden_text_says_what_where_and_what_to_do(name):
    lines = golden()[name].splitlines()
    assert [line[:7] for line in lines] == ["error: ", "   at: ", "  fix: "]
    for line in lines:
        assert 0 < len(line[7:].strip()) < 300
        assert not re.search(NOISE, line[7:]), line
    assert lines[2][7:].split()[0] in VERBS, lines[2]


if __name__ == "__main__":
    write_golden()
