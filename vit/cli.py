"""`vit`: what one does beside training: prepare a data set, predict images, look at a model or a run, compare runs."""

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vit.config import BoxData, FolderData, MaskData, TfdsData
from vit.data.prepare import prepare
from vit.errors import UserError, told_to_the_user
from vit.flags import parse, parse_config
from vit.limits import flag
from vit.training.stop import Stop

USAGE = """usage: vit check DIR [--out FOLDER] [--data.bad-images skip]      (looks at images before you train)
       vit check DIR_OR_JSON --as boxes                          (at boxes, where a set has masks, too)
       vit prepare NAME --data.dir FOLDER [--archive FILE]       (cifar10, cifar100, or any TFDS set)
       vit predict --workdir RUN_FOLDER SOURCE ...               (files, folders, 'patterns*.jpg', - for paths on stdin)
       vit estimate --config FILE [--topology v5e:4x4] [flags of train.py]     (what a run needs of devices, without them)
       vit info SIZE/PATCH [IMAGE_SIZE]                          (as S/16)
       vit info RUN_FOLDER
       vit report RUN_FOLDER                                     (makes its report.html anew)
       vit report RUN_FOLDER RUN_FOLDER ... [--out FILE]         (one page that compares them)
       vit convert RUN_OR_WEIGHTS --to timm|hf|npz OUT           (as other libraries read it)"""


@dataclass(frozen=True)
class Place:
    """Where data sets live."""

    dir: str = TfdsData.dir
    """The folder of prepared sets."""


@dataclass(frozen=True)
class Preparation:
    """What `vit prepare` is told."""

    data: Place = field(default_factory=Place)
    archive: str = ""
    """An archive fetched already, instead of a download (cifar10 and cifar100)."""


@dataclass(frozen=True)
class Checking:
    """What `vit check` is told beside the folder."""

    data: FolderData = field(default_factory=FolderData)
    out: str = ""
    """The folder for what it finds. Default: check-NAME in the current one."""


@dataclass(frozen=True)
class CheckingMasks:
    """What `vit check` is told beside the folder of a set with masks."""

    data: MaskData = field(default_factory=MaskData)
    out: str = ""
    """The folder for what it finds. Default: check-NAME in the current one."""


@dataclass(frozen=True)
class CheckingBoxes:
    """What `vit check` is told beside the folder of a set with boxes."""

    data: BoxData = field(default_factory=BoxData)
    out: str = ""
    """The folder for what it finds. Default: check-NAME in the current one."""


@dataclass(frozen=True)
class Comparison:
    """What `vit report` is told beside the folders."""

    out: str = "report.html"
    """The page that compares several runs."""


def main() -> None:
    """The `vit` command."""
    stop = Stop.listen() if sys.argv[1:2] == ["predict"] else None
    with told_to_the_user():
        run(sys.argv[1:], stop)


def run(args: list[str], stop: Stop | None = None) -> None:
    """Answer one command line. Raises `UserError` for one that it doesn't know."""
    if not args or args[0] in ("-h", "--help"):
        print(USAGE)
    elif args[0] == "prepare" and len(args) > 1 and not args[1].startswith("-"):
        wanted = parse(args[2:], Preparation(), f"Make the data set {args[1]}.")
        prepare(args[1], Path(wanted.data.dir).expanduser(), Path(wanted.archive) if wanted.archive else None)
    elif args[0] == "check" and len(args) > 1 and not args[1].startswith("-"):
        check(args[1:])
    elif args[0] == "predict":
        from vit.deploy.command import predict

        predict(args[1:], stop)
    elif args[0] == "estimate":
        estimated(args[1:])
    elif args[0] == "report" and len(args) > 1 and not args[1].startswith("-"):
        report(args[1:])
    elif args[0] == "convert":
        converted(args[1:])
    elif args[0] != "info" or len(args) not in (2, 3):
        raise UserError(f"vit doesn't know {' '.join(args)!r}", "the command line", "vit --help shows what it knows")
    elif Path(args[1]).is_dir():
        print("\n".join(about_run(Path(args[1]))))
    else:
        print(about_model(args[1], args[2] if len(args) == 3 else "224"))


def option(args: list[str], name: str) -> tuple[str, list[str]]:
    """The value of an option that isn't a setting, "" without it, and the other arguments. Raises `UserError` for two."""
    given = [i for i, arg in enumerate(args) if arg.partition("=")[0] == name]
    if not given:
        return "", args
    i = given[0]
    _, equals, value = args[i].partition("=")
    rest = args[:i] + args[i + (1 if equals else 2) :]
    value = value if equals else next(iter(args[i + 1 :]), "")
    if len(given) > 1 or not value:
        raise UserError(f"{name} needs one value", "the command line", "vit --help shows how it's used")
    return value, rest


def check(args: list[str]) -> None:
    """`vit check`: every image of a data set decoded. Raises `UserError` if it can't be trained on as it is."""
    from vit.data import boxcheck as boxed
    from vit.data import check as labelled
    from vit.data import maskcheck as masked
    from vit.report import boxcheck as report_boxed
    from vit.report import check as report_labelled
    from vit.report import maskcheck as report_masked

    place, args = args[0], args[1:]
    kinds = {
        "classes": (Checking(), labelled, report_labelled),
        "masks": (CheckingMasks(), masked, report_masked),
        "boxes": (CheckingBoxes(), boxed, report_boxed),
    }
    kind, args = option(args, "--as")
    if kind and kind not in kinds:
        raise UserError(f"a set can't be looked at as {kind!r}", "the command line", f"give --as {' or --as '.join(kinds)}")
    if not kind and any(arg.startswith("--data.annotations") for arg in args):
        kind = "boxes"
    kind = kind or ("masks" if masked.has_masks(place) else "boxes" if boxed.has_boxes(place) else "classes")
    defaults, look, leave = kinds[kind]
    wanted: Any = parse(args, defaults, "Look at a data set, and change nothing in it.")
    is_json = kind == "boxes" and Path(place).expanduser().is_file()
    data: Any = replace(wanted.data, **{"annotations" if is_json else "dir": place})
    folder = report_labelled.place(place, wanted.out, wanted.data.dir)
    findings: Any = look.examine(data)
    leave.write(folder, findings)
    print("\n".join(look.told(findings)))
    print(f"look at {folder}: {leave.FILES}", flush=True)
    look.verdict(findings, folder)


def report(args: list[str]) -> None:
    """`vit report`: a run's page, or one of several runs."""
    from vit.report.compare import compare
    from vit.report.page import report
    from vit.training.storage import open_folder

    count = next((i for i, arg in enumerate(args) if arg.startswith("-")), len(args))
    wanted = parse(args[count:], Comparison(), "Make a report.")
    folders = [open_folder(arg) for arg in args[:count]]
    if len(folders) == 1:
        report(folders[0])
    else:
        compare(folders, Path(wanted.out))
    print(f"look at {folders[0] / 'report.html' if len(folders) == 1 else wanted.out}")


def estimated(args: list[str]) -> None:
    """`vit estimate`: what a run of train.py would need of the devices here, or of a TPU slice."""
    name, args = option(args, "--topology")
    if not any(arg == "--config" or arg.startswith("--config=") for arg in args):
        raise UserError("vit estimate needs a configuration", "the command line", "give --config configs/imagenet.py")
    config = parse_config(args, Path())
    from vit.data.sources import describe, open_source
    from vit.training.estimate import estimate, topology
    from vit.training.storage import open_folder
    from vit.weights.start import prepare, settle

    devices = topology(name)
    config, weights, lines = settle(config, open_folder(config.workdir))
    if config.auto:
        try:
            source = open_source(config.data, "train")
        except UserError:
            lines.append(f"not chosen, for the data isn't here: {', '.join(map(flag, config.auto))}")
        else:
            config, _, more = prepare(config, weights, describe(source), len(source))
            lines += more
    print("\n".join([*lines, *estimate(config, devices)]))


def converted(args: list[str]) -> None:
    """`vit convert`: the weights of a run, or any that we read, as another library's."""
    from vit.weights.convert import convert

    library, args = option(args, "--to")
    if not library or len(args) != 2 or any(arg.startswith("-") for arg in args):
        fix = "give RUN_OR_WEIGHTS --to timm OUT"
        raise UserError("vit convert needs a source, --to, and a place", "the command line", fix)
    print("\n".join(convert(args[0], library, Path(args[1]))))


def about_model(name: str, size: str) -> str:
    """Parameters and operations of a variant with 1,000 classes."""
    import math

    from flax import nnx

    from vit.config import ViTConfig
    from vit.models.vit import ViT, flops

    if not size.isdecimal():
        raise UserError(f"{size!r} is not an image size", "the command line", "give pixels, as vit info S/16 384")
    config = ViTConfig.variant(name)
    shape = {"image_size": (int(size), int(size)), "channels": 3, "classes": 1000}
    model = nnx.eval_shape(lambda: ViT(config, **shape, rngs=nnx.Rngs(0)))
    count = sum(math.prod(x.shape) for _, x in nnx.to_flat_state(nnx.state(model)))
    sizes = f"width {config.width}, {config.depth} blocks, {config.heads} heads, MLP {config.mlp}"
    return f"{name} at {size}x{size}: {count:,} parameters, {flops(config, **shape) / 1e9:.2f} GFLOPs an image ({sizes})"


def about_run(workdir: Path) -> list[str]:
    """The run's checkpoints, each proven whole or named damaged."""
    from vit.training.checkpoint import Checkpoints, Damaged, best_step

    lines, scores = [], {}
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        for step in checkpoints.steps():
            try:
                meta = checkpoints.verify(step)
            except Damaged as damage:
                lines.append(f"step {step}: damaged, {damage}")
            else:
                scores |= meta["scores"]
                lines.append(f"step {step}: whole, {meta['data']['dataset']}, vit {meta['versions']['vit']}")
        best = best_step(scores, checkpoints.steps())
    if not lines:
        raise UserError("there is no checkpoint here", str(workdir), "give the folder of a run, as runs/digits-s0")
    return lines if best is None else [*lines, f"best by validation: step {best}"]
