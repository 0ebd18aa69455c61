"""The table of a trace: names of instructions, sums over blocks, and a whole run's."""

import json
import os

from tests.conftest import SMALL, run
from vit.training.log import Meter
from vit.training.profile import Profile, operation_names, top_operations, with_every_kernel

PROGRAM = """HloModule jit_train_step
ENTRY %main {
  %dot.1 = f32[8,16]{1,0} dot(%a, %b), metadata={op_name="jit(train_step)/jvp(blocks/0)/attn/dot_general" stack_frame_id=1}
  %dot.2 = f32[8,16]{1,0} dot(%a, %b), metadata={op_name="jit(train_step)/jvp(blocks/1)/attn/dot_general"}
  ROOT %add.7 = f32[8]{0} add(%c, %d), metadata={op_name="jit(train_step)/transpose(jvp(blocks/1))/mlp/add"}
  %copy = f32[2] copy(%e)
  %loop = (f32[2], s32[]) while(%t), condition=%c, body=%b
}
"""


def test_names_say_what_where():
    names = operation_names(PROGRAM)
    assert names["dot.1"] == names["dot.2"] == "blocks/*/attn/dot_general f32[8,16]"
    assert names["add.7"] == "blocks/*/mlp/add f32[8], backward"
    assert names["copy"] == "copy f32[2]"
    assert "loop" not in names


def test_the_same_operation_of_all_blocks_is_one_line():
    seen = [("dot.1", 2e6), ("dot.2", 4e6), ("add.7", 3e6), ("%add.7 = f32[8] add", 1e6), ("ThunkExecutor::Execute", 9e9)]
    assert top_operations(seen, PROGRAM, 2) == [
        {"operation": "blocks/*/attn/dot_general f32[8,16]", "share": 0.6, "ms": 3.0, "calls": 1.0},
        {"operation": "blocks/*/mlp/add f32[8], backward", "share": 0.4, "ms": 2.0, "calls": 1.0},
    ]


def test_a_gpu_starts_kernels_one_by_one_while_it_is_traced(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=x")
    with_every_kernel(0)
    assert os.environ["XLA_FLAGS"] == "--xla_dump_to=x"
    with_every_kernel(3)
    assert os.environ["XLA_FLAGS"] == "--xla_dump_to=x --xla_gpu_enable_command_buffer="


def test_flops_a_second_as_a_share_of_the_limit():
    meter = Meter(limit=1e9)
    meter.images, meter.flops, meter.begin = 10, 4e9, meter.begin - 8
    speed = meter.speed()
    assert abs(speed["flops_per_s"] / 5e8 - 1) < 0.01
    assert abs(speed["mfu"] / 0.5 - 1) < 0.01


def test_a_trace_that_training_leaves_or_comes_back_to_is_ended(tmp_path):
    profile = Profile(tmp_path, 5, 0)
    for step in (2, 3, 4, 3, 4):  # back from 4 to 3
        profile.before(step, ())
        assert profile.after(step, (), lambda: "") == ""
    assert profile.end() == "training ended before 5 updates were traced"
    assert profile.end() == ""
    profile.before(9, ())  # once is enough
    assert not profile.tracing
    assert not (tmp_path / "profile.json").exists()


def test_a_run_that_is_traced_says_what_took_its_time(tmp_path):
    run("train.py", *SMALL, "--profile=3", f"--workdir={tmp_path / 'run'}")
    profile = json.loads((tmp_path / "run" / "profile.json").read_text())
    assert profile["steps"] == 3
    assert any("dot_general" in row["operation"] for row in profile["operations"])
    assert 0.5 < sum(row["share"] for row in profile["operations"]) <= 1.0001
    page = (tmp_path / "run" / "report.html").read_text()
    assert "What took the time" in page
    assert profile["operations"][0]["operation"] in page
    assert list((tmp_path / "run" / "trace").rglob("*.xplane.pb"))
