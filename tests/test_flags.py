"""The command line: every mistake has its three lines, and every field its flag."""

import dataclasses
import json
import shlex
from pathlib import Path

import pytest

from tests.conftest import REPO
from vit.config import SGD, AdamW, Config, ViTConfig, differences, fields, from_json, to_json
from vit.errors import UserError
from vit.flags import as_flags, parse_config
from vit.limits import flag

DIGITS = Path(__file__).parent.parent / "configs" / "digits.py"


def parse(*args):
    return parse_config([str(arg) for arg in args], DIGITS)


def refused(*args):
    with pytest.raises(UserError) as caught:
        parse(*args)
    error = caught.value
    assert error.code == 2
    assert str(error) == f"error: {error.what}\n   at: {error.where}\n  fix: {error.fix}"
    return error


def test_flags_change_single_values():
    config = parse("--seed", "3", "--steps=7", "--optim.lr", "0.01", "--data.stream", "--schedule.warmup", "2")
    assert (config.seed, config.steps, config.optim.lr, config.data.stream) == (3, 7, 0.01, True)
    assert config.workdir == "runs/digits-s3"
    assert parse("--workdir", "runs/x").workdir == "runs/x"
    assert isinstance(parse().optim, AdamW)


def test_a_union_is_plain_flags(tmp_path):
    path = tmp_path / "sgd.py"
    path.write_text("from vit.config import *\ndef get_config():\n    return Config(optim=SGD(momentum=0.8))\n")
    config = parse("--config", path, "--optim.momentum", "0.7")
    assert config.optim == SGD(momentum=0.7)
    assert config.workdir == "runs/sgd-s0"
    assert parse(f"--config={path}") == dataclasses.replace(config, optim=SGD(momentum=0.8))


def test_the_printed_command_line_gives_the_same_run():
    config = parse("--data.stream", "--data.mean", "0.3", "--optim.lr", "1e-4")
    assert parse(*shlex.split(as_flags(config))) == config


def test_help_names_every_field(capsys):
    with pytest.raises(SystemExit) as caught:
        parse("--help")
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    for name in fields(parse()):
        assert flag(name) in shown


@pytest.mark.parametrize("name", ["steps", "batch_size", "accumulate", "eval_every", "save_every", "log_every", "keep"])
@pytest.mark.parametrize("value", ["0", "-3"])
def test_counts_start_at_one(name, value):
    error = refused(flag(name), value)
    assert error.what == f"{flag(name)} can't be {value}"
    assert error.fix == "give a whole number, at least 1"
    assert error.where == "the command line"


NUMBERS = [name for name, (_, value) in fields(Config()).items() if isinstance(value, float)]


@pytest.mark.parametrize("name", [*NUMBERS, "data.std"])
@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "-1"])
def test_no_number_may_be_negative_or_not_finite(name, value):
    error = refused(flag(name), value)
    assert error.what == f"{flag(name)} can't be {float(value)}"
    assert error.fix.startswith("give a finite number, ")


@pytest.mark.parametrize(
    ("name", "value"), [("data.std", "1e-50"), ("data.mean", "1e300"), ("steps", "9" * 400), ("keep", "3000000000")]
)
def test_numbers_must_fit_the_device(name, value):
    assert refused(flag(name), value).what.startswith(f"{flag(name)} can't be ")


def test_a_trial_shorter_than_the_warm_up_is_fine():
    assert parse("--steps", "5").schedule.warmup > 5


@pytest.mark.parametrize(
    ("args", "what", "fix"),
    [
        (["--lr", "3"], "there is no flag --lr", "did you mean --optim.lr? --help lists them all"),
        (["--optm.lr=3"], "there is no flag --optm.lr", "did you mean --optim.lr? --help lists them all"),
        (["--step", "3"], "there is no flag --step", "did you mean --steps? --help lists them all"),
        (["--batchsize", "3"], "there is no flag --batchsize", "did you mean --batch-size? --help lists them all"),
        (
            ["--model.drop_pth", "3"],
            "there is no flag --model.drop-pth",
            "did you mean --model.drop-path? --help lists them all",
        ),
        (["--confg", "x"], "there is no flag --confg", "did you mean --config? --help lists them all"),
        (["7"], "unexpected argument '7'", "give flags as --name value; --help lists them"),
        (["--optim.lr", "0"], "--optim.lr can't be 0.0", "give a finite number, greater than 0"),
        (["--ema", "1"], "--ema can't be 1.0", "give a finite number, at least 0 and less than 1"),
        (["--seed", "4294967296"], "--seed can't be 4294967296", "give a whole number, at least 0 and at most 4294967295"),
        (
            ["--steps", "many"],
            "--steps can't be 'many'",
            "give a whole number, at least 1",
        ),
        (
            ["--steps", "2.5"],
            "--steps can't be '2.5'",
            "give a whole number, at least 1",
        ),
        (["--steps"], "--steps needs a value", "give a whole number, at least 1"),
        (["--config"], "--config needs a file", "give one, as --config configs/digits.py"),
        (
            ["--model.dtype", "float16"],
            "--model.dtype can't be 'float16'",
            "give one of: float32, bfloat16",
        ),
        (["--model.heads", "5"], "--model.width 64 can't be shared by 5 heads", "give a width that --model.heads divides"),
        (["--accumulate", "3"], None, "give a batch size that --accumulate divides"),
        (["--data.mean", "0.1", "0.2"], "--data.mean has 2 values, --data.std 1", "give one of each a channel"),
        (
            ["--model.width", "66", "--model.heads", "2", "--model.position", "sincos"],
            "sin-cos positions can't fill --model.width 66",
            "give a multiple of 4, or --model.position learned",
        ),
    ],
)
def test_mistakes(args, what, fix):
    error = refused(*args)
    assert what in (None, error.what)
    assert fix in (None, error.fix)


def test_a_missing_config_names_the_nearest(tmp_path):
    error = refused("--config", DIGITS.with_name("digit.py"))
    assert error.what == "there is no such config file"
    assert error.fix == f"did you mean {DIGITS}?"
    assert "get_config()" in refused("--config", tmp_path / "none" / "x.py").fix


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("def get_config(:", "the config file fails: SyntaxError"),
        ("x = 1", "the config file has no get_config"),
        ("def get_config():\n    return {}['a']", "the config file fails: KeyError: 'a'"),
        ("1 / 0", "the config file fails: ZeroDivisionError"),
        ("raise SystemExit(0)", "the config file fails: SystemExit"),
        ("from vit.config import *\ndef get_config():\n    return Config(optim=None)", "optim can't be None"),
        ("from vit.config import *\ndef get_config():\n    return Config(model=AdamW())", "model can't be AdamW"),
        (
            "from vit.config import *\ndef get_config():\n    return Config(data=DigitsData(mean=0.3))",
            "--data.mean can't be 0.3",
        ),
        (
            "from vit.config import *\ndef get_config():\n    return Config(data=DigitsData(mean=[0.3]))",
            "--data.mean can't be [0.3]",
        ),
        ("from vit.config import *\ndef get_config():\n    return Config(data=DigitsData(mean=()))", "--data.mean can't be ()"),
        ("def get_config():\n    return 3", "get_config() returned int"),
        ("import nowhere_to_be_found", "the config file fails: ModuleNotFoundError"),
        ("from vit.config import *\ndef get_config():\n    return Config(stepz=3)", "the config file fails: TypeError"),
        ("from vit.config import *\ndef get_config():\n    return Config(steps=0)", "--steps can't be 0"),
        ("from vit.config import *\ndef get_config():\n    return Config(steps='3')", "--steps can't be '3'"),
        ("from vit.config import *\ndef get_config():\n    return Config(ema=float('nan'))", "--ema can't be nan"),
        ("from vit.config import *\ndef get_config():\n    return Config(model=ViTConfig.variant('X/1'))", "there is no ViT"),
        (
            "from vit.config import *\ndef get_config():\n    return Config(model=ViTConfig(pool='max'))",
            "--model.pool can't be 'max'",
        ),
    ],
)
def test_a_broken_config_file(tmp_path, text, what):
    path = tmp_path / "broken.py"
    path.write_text(text)
    assert refused("--config", path).what.startswith(what)


def test_json_gives_the_configuration_back():
    config = parse("--optim.lr", "0.3", "--data.mean", "0.1")
    assert from_json(json.loads(json.dumps(to_json(config))), "here") == config
    other = dataclasses.replace(config, optim=SGD(), model=ViTConfig.variant("S/16", pool="map"))
    assert from_json(json.loads(json.dumps(to_json(other))), "here") == other


def test_json_of_an_older_version_takes_defaults_and_of_a_newer_is_refused():
    plain = to_json(parse())
    del plain["keep"]
    assert from_json(plain, "here").keep == Config().keep
    with pytest.raises(UserError, match="its configuration can't be read"):
        from_json({**plain, "from_the_future": 1}, "here")
    with pytest.raises(UserError, match="its configuration can't be read"):
        from_json({**plain, "data": {"type": "Moon"}}, "here")


def test_differences_that_matter():
    old = parse()
    assert (
        differences(old, parse("--steps", "9000", "--keep", "9", "--workdir", "x", "--data.stream", "--log-every", "3")) == {}
    )
    assert differences(old, parse("--seed", "1")) == {"seed": (0, 1)}
    changed = dataclasses.replace(old, optim=SGD(lr=old.optim.lr, weight_decay=old.optim.weight_decay))
    assert differences(old, changed) == {"optim": ("AdamW", "SGD")}


def test_every_shipped_config_is_valid():
    for path in DIGITS.parent.glob("*.py"):
        assert parse("--config", path).workdir == f"runs/{path.stem}-s0"


def test_a_flag_takes_its_name_out_of_what_is_chosen():
    finetune = REPO / "configs" / "finetune.py"
    auto = parse_config([], finetune).auto
    given = parse_config(["--optim.lr", "1e-4", "--steps=9", "--data.size", "32"], finetune).auto
    assert set(auto) - set(given) == {"optim.lr", "steps", "data.size"}
    weights = parse_config(["--weights", "w", "--model.width=64", "--data.mean", "0.5", "0.5", "0.5"], finetune).auto
    assert "model.width" not in weights
    assert "data.mean" not in weights
    assert {"model.depth", "model.patch", "data.std"} <= set(weights)
    assert not {"model.drop_path", "model.dtype"} & (set(weights) - set(auto))
    assert parse_config(["--auto"], finetune).auto == ()
