"""A training step, and a forward pass, against PyTorch's on the same machine and against what its matmuls allow.

    pip install torch timm transformers onnx onnxruntime onnxscript     # the peers; who isn't there is left out, and said
    python benchmarks/step.py [--rounds 7] [--models cifar10_cpu] [--json step.json]

Each contender lives in a process of its own, which waits for its turn on a pipe: so they alternate without disturbing each
other, and the memory is each one's own. A round gives everyone the same few seconds; what is told is the median over rounds of
a step's time, with its spread. The limit is float32 matmuls of the step's shapes, forward and backward, as fast as XLA or
PyTorch makes them, in the same rounds.
"""

import argparse
import importlib.util
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from vit.config import ViTConfig
from vit.training.memory import TUNABLES

# name: (model, side in pixels, batch)
MODELS = {
    "Ti/4, 32 px": (ViTConfig.variant("Ti/4"), 32, 128),
    "cifar10_cpu, 32 px": (ViTConfig(patch=4, width=128, depth=6, heads=4, mlp=256, stem="conv", pool="mean"), 32, 128),
    "S/16, 224 px": (ViTConfig.variant("S/16"), 224, 8),
}
LIMIT = ["matmul (XLA)", "matmul (torch)"]
TRAIN = ["vit", "vit, remat", "torch", "torch, compiled", "timm", "timm, compiled", "transformers"]
FORWARD = ["vit", "torch", "torch, compiled", "timm", "transformers", "onnxruntime"]
CLASSES, SECONDS = 10, 3.0


def operations(config: ViTConfig, side: int) -> float:
    """FLOPs of one image's forward pass; a training step counts three times as many."""
    from vit.models.vit import flops

    return flops(config, image_size=(side, side), channels=3, classes=CLASSES)


def made_up(side: int, batch: int, classes: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """A data set's description, and a batch of it."""
    import numpy as np

    data = {"dataset": "made up", "class_names": [str(k) for k in range(classes)], "image_size": [side, side], "channels": 3}
    rng, ids = np.random.default_rng(0), np.arange(batch, dtype=np.int32)
    images = rng.integers(0, 256, (batch, side, side, 3), np.uint8)
    return data, {"image": images, "label": ids % classes, "id": ids, "mask": np.ones(batch, bool)}


# ---- the contenders: each gives a function that does one step and waits for it ----


def ours(config: ViTConfig, side: int, batch: int, mode: str, remat: bool) -> Callable[[], Any]:
    """This project's jitted step on uint8 images, as a run hands them over; it normalises, and looks for bad numbers."""
    import dataclasses

    import jax

    from vit.config import AugmentConfig, Config, TfdsData
    from vit.data.augment import make_prepare
    from vit.tasks import make_task
    from vit.training.memory import give_back_after_compiling
    from vit.training.sharding import make_mesh, place
    from vit.training.state import init_state, make_eval_step, make_train_step

    run = Config(model=dataclasses.replace(config, remat=remat), batch_size=batch, data=TfdsData(), clip=0.0)
    data, made = made_up(side, batch, CLASSES)
    task, prepare = make_task(run.task, run.model, data), make_prepare(run.data, AugmentConfig())
    give_back_after_compiling()
    mesh, state = make_mesh(), init_state(task.build, run)
    if mode == "forward":
        forward, params = make_eval_step(task, prepare), state["params"]
        return lambda: jax.block_until_ready(forward(params, place(made, mesh)))
    step = make_train_step(task, prepare, run)

    def once() -> Any:
        nonlocal state
        state, metrics = step(state, place(made, mesh))
        return jax.block_until_ready(metrics["loss"])

    return once


def theirs(name: str, config: ViTConfig, side: int, batch: int, mode: str) -> Callable[[], Any]:
    """A peer's step in PyTorch."""
    import torch

    from benchmarks.peers import BUILD, logits, train_step

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    name, _, compiled = name.partition(", ")
    model = BUILD[name](config, side, CLASSES)
    images, labels = torch.randn(batch, 3, side, side), torch.randint(0, CLASSES, (batch,))
    if mode == "forward":
        run = torch.compile(model.eval()) if compiled else model.eval()

        @torch.inference_mode()
        def forward() -> Any:
            return logits(run, images)

        return forward
    step = train_step(model.train(), bool(compiled))
    return lambda: float(step(images, labels))


def onnx(config: ViTConfig, side: int, batch: int) -> Callable[[], Any]:
    """The plain PyTorch model in ONNX Runtime."""
    import onnxruntime
    import torch

    from benchmarks.peers import BUILD

    images = torch.randn(batch, 3, side, side)
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/model.onnx"
        torch.onnx.export(BUILD["torch"](config, side, CLASSES).eval(), (images,), path, dynamo=True, input_names=["images"])
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"images": images.numpy()})


def shapes(config: ViTConfig, side: int, batch: int) -> list[tuple[int, int, int]]:
    """(rows, inner, columns) of a block's matrix products in a training step: each layer's, and two in the backward pass."""
    rows, D = batch * ((side // config.patch) ** 2 + (config.pool == "token")), config.width
    layers = [(D, 3 * D), (D, D), (D, config.mlp), (config.mlp, D)]
    return [shape for i, o in layers for shape in ((rows, i, o), (rows, o, i), (i, rows, o))]


def matmuls(name: str, config: ViTConfig, side: int, batch: int) -> Callable[[], Any]:
    """One block's matrix products, one after the other."""
    import numpy as np

    rng = np.random.default_rng(0)
    pairs = [(rng.standard_normal((m, k)), rng.standard_normal((k, n))) for m, k, n in shapes(config, side, batch)]
    pairs = [(a.astype(np.float32), b.astype(np.float32)) for a, b in pairs]
    if name == "matmul (torch)":
        import torch

        torch.set_num_threads(len(os.sched_getaffinity(0)))
        tensors = [(torch.from_numpy(a), torch.from_numpy(b)) for a, b in pairs]
        return lambda: [a @ b for a, b in tensors]
    import jax
    import jax.numpy as jnp

    arrays = [(jnp.asarray(a), jnp.asarray(b)) for a, b in pairs]
    compiled = [jax.jit(jnp.matmul).lower(a, b).compile() for a, b in arrays]
    return lambda: [jax.block_until_ready(f(a, b)) for f, (a, b) in zip(compiled, arrays, strict=True)]


def contender(name: str, model: str, mode: str) -> None:
    """One contender's process: for each number on stdin so many steps, after one for nothing, and a line with their seconds."""
    config, side, batch = MODELS[model]
    begin = time.perf_counter()
    if name.startswith("matmul"):
        step = matmuls(name, config, side, batch)
    elif name.startswith("vit"):
        step = ours(config, side, batch, mode, remat="remat" in name)
    elif name == "onnxruntime":
        step = onnx(config, side, batch)
    else:
        step = theirs(name, config, side, batch, mode)
    step()
    print(json.dumps({"ready": time.perf_counter() - begin}), flush=True)
    for line in sys.stdin:
        times = []
        step()  # what others did meanwhile is no concern of a step in the midst of a run: caches, pages that the host took back
        for _ in range(int(line)):
            begin = time.perf_counter()
            step()
            times.append(time.perf_counter() - begin)
        print(json.dumps({"seconds": times, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3}), flush=True)


# ---- the rounds ----


class Process:
    """A contender, as the one who keeps time sees it."""

    def __init__(self, name: str, model: str, mode: str):
        command = [sys.executable, __file__, "--contender", name, "--models", model, "--mode", mode]
        env = {**os.environ, "GLIBC_TUNABLES": TUNABLES}  # as train.py sets it; for all, it helps who it helps
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - as long as the process
        pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self.errors}
        self.pipe = subprocess.Popen(command, text=True, env=env, **pipes)
        self.seconds: list[float] = []  # the median of each round
        self.ready = self._answer()["ready"]
        self.turn(1)
        self.count = max(1, round(SECONDS / self.seconds.pop()))

    def _answer(self) -> dict[str, Any]:
        assert self.pipe.stdout
        while line := self.pipe.stdout.readline():
            if line.startswith("{"):
                return json.loads(line)
        self.errors.seek(0)
        raise RuntimeError(self.errors.read())

    def turn(self, count: int = 0) -> None:
        """Its steps of one round."""
        assert self.pipe.stdin
        self.pipe.stdin.write(f"{count or self.count}\n")
        self.pipe.stdin.flush()
        answer = self._answer()
        self.seconds.append(statistics.median(answer["seconds"]))
        self.peak = answer["peak"]

    def end(self) -> None:
        """Let it go."""
        self.pipe.communicate()


def measure(model: str, mode: str, rounds: int) -> dict[str, Any]:
    """A table's rows: of each contender a step's milliseconds, images a second, GFLOP/s, share of the limit, MB at the most."""
    config, side, batch = MODELS[model]
    work = batch * operations(config, side) * (3 if mode == "train" else 1)
    products = sum(2 * m * k * n for m, k, n in shapes(config, side, batch))
    names = [*LIMIT, *(TRAIN if mode == "train" else FORWARD)]
    absent = [name for name in names if not present(name)]
    processes = {name: Process(name, model, mode) for name in names if name not in absent}
    for _ in range(rounds):
        for process in processes.values():
            process.turn()
    rows, limit = {}, 0.0
    for name, process in processes.items():
        process.end()
        middle, quick, slow = statistics.median(process.seconds), min(process.seconds), max(process.seconds)
        done = (products if name.startswith("matmul") else work) / middle / 1e9
        rows[name] = {
            "ms": round(1e3 * middle, 2),
            "spread": [round(1e3 * quick, 2), round(1e3 * slow, 2)],
            "gflops": round(done, 1),
        }
        if name.startswith("matmul"):
            limit = max(limit, done)
        else:
            rows[name] |= {"images_per_s": round(batch / middle, 1), "of_limit": round(done / limit, 3)}
            rows[name] |= {"peak_mb": round(process.peak), "ready_s": round(process.ready, 1)}
    peers = {name: row for name, row in rows.items() if not name.startswith(("vit", "matmul"))}
    best = max(peers, key=lambda name: peers[name]["images_per_s"]) if peers else None
    verdict = {"best peer": best, "ratio": round(rows["vit"]["images_per_s"] / peers[best]["images_per_s"], 3)} if best else {}
    return {"model": model, "mode": mode, "batch": batch, "rows": rows, "absent": absent, **verdict}


def present(name: str) -> bool:
    """Whether a contender's packages are installed."""
    needs = {"torch": ["torch"], "timm": ["torch", "timm"], "transformers": ["torch", "transformers"]}
    needs |= {"onnxruntime": ["torch", "onnxruntime", "onnx", "onnxscript"], "matmul (torch)": ["torch"]}
    return all(importlib.util.find_spec(package) for package in needs.get(name.partition(",")[0], []))


def table(found: dict[str, Any]) -> str:
    """One measurement as a table in Markdown."""
    head = ["", "ms a step", "spread", "images/s", "GFLOP/s", "of the limit", "peak MB"]
    lines = [
        f"**{found['model']}, batch {found['batch']}, {found['mode']}**",
        "",
        f"| {' | '.join(head)} |",
        "|---" * len(head) + "|",
    ]
    for name, row in found["rows"].items():
        share = f"{row['of_limit']:.0%}" if "of_limit" in row else ""
        spread = "–".join(f"{x:.1f}" for x in row["spread"])
        cells = [name, f"{row['ms']:.1f}", spread, row.get("images_per_s", ""), row["gflops"], share, row.get("peak_mb", "")]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    if "ratio" in found:
        lines += ["", f"vit against the best peer ({found['best peer']}): {found['ratio']:.2f} ×"]
    return "\n".join([*lines, f"not installed: {', '.join(found['absent'])}" if found["absent"] else ""])


def main() -> None:
    """Measure what was asked for."""
    flags = argparse.ArgumentParser()
    flags.add_argument("--rounds", type=int, default=7)
    flags.add_argument("--models", nargs="*", default=list(MODELS))
    flags.add_argument("--mode", default="")
    flags.add_argument("--json", type=Path, default=None)
    flags.add_argument("--contender", default="")
    wanted = flags.parse_args()
    if wanted.contender:
        contender(wanted.contender, wanted.models[0], wanted.mode)
        return
    models = [model for model in MODELS if any(model.startswith(name) for name in wanted.models)]
    found = []
    for model in models:
        for mode in [wanted.mode] if wanted.mode else ["train", "forward"]:
            found.append(measure(model, mode, wanted.rounds))
            print(table(found[-1]), flush=True)
    if wanted.json:
        wanted.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
