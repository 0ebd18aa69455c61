"""The same run told to stop, at chosen places: each time it saves, says so, and ends bitwise as if nothing had happened."""

import random

from tests.conftest import run
from tests.heavy.conftest import COMMAND
from tests.heavy.test_kills import SAVING, some, struck
from tests.test_programs import assert_same_state, final_state

# At these a process that still runs notices, saves and exits with 75.
SIGNALS = [
    *[("compile", tenths) for tenths in (0, 3, 10, 25)],
    *[("vit.training.loop.Loop.update", n) for n in (1, 2, 13, 48)],
    *[("vit.training.evaluate.evaluate", n) for n in (1, 2)],
    *[("vit.training.evaluate.place", n) for n in (1, 9)],
    *[SAVING[i] for i in (0, 1, 3, 4, 6, 8)],
]


def test_told_to_stop_at_one_place_after_the_other(whole, tmp_path):
    """At half of the places."""
    seed = random.randrange(10**6)
    print(f"\nseed {seed}")
    signals = some(SIGNALS, random.Random(seed))
    for place, count in signals:
        code, err = struck("SIGTERM", place, count, tmp_path / "run")
        assert code == 75, f"{place}: {err}"
        step, _ = final_state(tmp_path / "run")
        assert f"stopped at step {step} and saved" in err
        assert (tmp_path / "run" / "report.html").is_file()
    run("train.py", *COMMAND, f"--workdir={tmp_path / 'run'}")
    assert_same_state(final_state(tmp_path / "run"), final_state(whole[0]))
    (tmp_path / "run" / "eval.json").unlink()
    for place, count in [("vit.training.evaluate.evaluate_split", 1), ("vit.training.evaluate.place", 1)]:  # of a finished run
        code, err = struck("SIGTERM", place, count, tmp_path / "run")
        assert code == 75
        assert "stopped before the evaluation was done" in err
    run("train.py", *COMMAND, f"--workdir={tmp_path / 'run'}")
    assert (tmp_path / "run" / "eval.json").is_file()
    print(f"{len(signals) + 2} signals answered")
