"""Kills of a short digits run, at random moments and at chosen places: it ends bitwise as if nothing had happened."""

import random
import signal
import subprocess

from tests.conftest import REPO, program_environment, run, start
from tests.heavy.conftest import COMMAND
from tests.test_programs import assert_same_state, final_state

STOPS = 2

CHECKPOINT = "vit.training.checkpoint."
SAVING = [  # the phases of a save, in their order: (place, call). A kill comes at one of these calls, by chance.
    (CHECKPOINT + "collect", 2),
    (CHECKPOINT + "Checkpoints._commit", 3),
    ("vit.training.storage.files", 2),
    ("vit.training.storage.digest", 8),
    (CHECKPOINT + "_manifest_text", 4),
    ("vit.training.storage.sync", 2),
    ("vit.training.storage.sync+", 3),
    ("vit.training.storage.move", 3),
    ("vit.training.storage.move+", 2),
    ("vit.training.storage.sync_one+", 40),
    (CHECKPOINT + "Checkpoints._discard", 1),
    ("vit.training.storage.remove", 1),
    ("vit.training.storage.remove+", 2),
]
KILLS = [
    ("vit.data.sources.open_source", 1),
    ("vit.training.workdir.write_config", 1),
    ("compile", 1),
    ("compile", 5),
    ("compile", 20),
    ("vit.training.loop.Loop.update", 1),
    ("vit.training.loop.Loop.update", 52),
    ("vit.training.loop.Loop.update+", 31),
    *SAVING,
    ("vit.training.evaluate.evaluate", 1),
    ("vit.training.evaluate.evaluate+", 1),
    ("vit.training.log.Log.metrics+", 12),
]
# Of a run that has a checkpoint: bringing it back; after the last update, the evaluation that ends the run.
AT_THE_END = [
    (CHECKPOINT + "Checkpoints.restore", 1),
    ("vit.training.evaluate.evaluate_split", 1),
    ("vit.report.results.write", 1),
]


def test_stopped_at_random(whole, tmp_path):
    undisturbed, seconds = whole
    rng, stops, rounds = random.Random(0), 0, 0
    print()
    while stops < STOPS:  # a round is one run from the start to the end, with as many stops as it meets
        rounds += 1
        workdir, code = tmp_path / str(rounds), None
        while code != 0:
            process = start("train.py", *COMMAND, f"--workdir={workdir}", forked=False)
            number = signal.SIGKILL if rng.random() < 0.7 else signal.SIGTERM
            if stops < STOPS:
                try:
                    process.wait(timeout=rng.uniform(0.3, 0.9 * seconds))
                except subprocess.TimeoutExpired:
                    process.send_signal(number)
                    stops += 1
            _, err = process.communicate(timeout=300)
            code = process.returncode
            # Before Python has come as far as to listen, SIGTERM simply ends it.
            assert code in (0, 75, -number), err
            steps = [p.name for p in (workdir / "checkpoints").glob("*") if p.name.isdecimal()]
            print(f"{code} at {max(map(int, steps), default='the start')},", end=" ", flush=True)
        assert_same_state(final_state(workdir), final_state(undisturbed))
    print(f"{stops} stops in {rounds} runs")


def struck(number, place, count, workdir):
    """Run the command with a signal at a place; how it ended."""
    environment = program_environment()
    if place == "compile":  # for real, every time
        environment["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    command = [number, place, count, REPO / "train.py", *COMMAND, f"--workdir={workdir}"]
    process = start("tests/heavy/dying.py", *command, env=environment)
    _, err = process.communicate(timeout=300)
    steps = [int(p.name) for p in (workdir / "checkpoints").glob("*") if p.name.isdecimal()]
    print(f"{place} {count}: {process.returncode} at {max(steps, default='the start')}", flush=True)
    return process.returncode, err


def some(places, rng):
    """Half of them, drawn by chance: each start takes seconds, and the next time it is others."""
    return [places[i] for i in sorted(rng.sample(range(len(places)), (len(places) + 1) // 2))]


def test_killed_at_one_place_after_the_other(whole, tmp_path):
    """One run, killed at half of the places; then one that is only killed at its end."""
    seed = random.randrange(10**6)
    rng = random.Random(seed)
    kills = [*some(KILLS, rng), *AT_THE_END]
    print(f"\nseed {seed}")
    for place, most in kills:
        code, err = struck("SIGKILL", place, rng.randint(1, most), tmp_path / "run")
        assert code == -signal.SIGKILL, f"{place}: {err}"
    run("train.py", *COMMAND, f"--workdir={tmp_path / 'run'}")
    assert_same_state(final_state(tmp_path / "run"), final_state(whole[0]))
    print(f"{len(kills)} kills survived")
