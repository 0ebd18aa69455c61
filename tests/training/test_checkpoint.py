"""Saves are whole or not there; any damage to any file is found; nothing good is thrown away."""

import concurrent.futures
import json
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vit.errors import UserError
from vit.training.checkpoint import MANIFEST, Checkpoints, Damaged, best_step


def state(seed=0):
    params = {f"blocks/{i}/kernel": jax.random.normal(jax.random.key(seed * 7 + i), (5, 3)) for i in range(12)}
    params["head/bias"] = jnp.arange(4.0)
    opt = optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam()).init(params)
    return {"params": params, "opt": opt, "ema": {}, "step": jnp.asarray(seed, jnp.int32)}


def meta(step, scores=None):
    return {"step": step, "scores": scores or {}, "config": {"seed": 0}, "data": {"class_names": ["é", "b"]}}


@pytest.fixture
def checkpoints(tmp_path):
    with Checkpoints(tmp_path / "checkpoints", keep=2) as opened:
        yield opened


def save(checkpoints, step, scores=None):
    checkpoints.save(step, state(step), meta(step, scores))
    checkpoints.wait()


def test_what_is_restored_is_bitwise_what_was_saved(checkpoints):
    save(checkpoints, 3)
    found = checkpoints.newest()
    assert (found.step, found.meta, found.damaged) == (3, meta(3), {})
    restored = checkpoints.restore(3, state())
    assert jax.tree.structure(restored) == jax.tree.structure(state(3))
    jax.tree.map(np.testing.assert_array_equal, restored, state(3))
    params = checkpoints.params(3)
    assert params.keys() == state()["params"].keys()


def test_the_moving_average_is_what_is_loaded_where_there_is_one(checkpoints):
    averaged = {**state(1), "ema": state(2)["params"]}
    checkpoints.save(1, averaged, meta(1))
    checkpoints.wait()
    jax.tree.map(np.testing.assert_array_equal, checkpoints.params(1), averaged["ema"])


def test_memory_may_be_reused_while_the_save_runs(checkpoints):
    step = jax.jit(lambda s: jax.tree.map(lambda x: x * 0 - 1, s), donate_argnums=0)
    big = {**state(), "params": {"w": jnp.arange(2_000_000.0)}}
    checkpoints.save(1, big, meta(1))
    jax.block_until_ready(step(big))
    checkpoints.wait()
    np.testing.assert_array_equal(checkpoints.params(1)["w"], np.arange(2_000_000.0))


def test_the_newest_and_the_best_are_kept(checkpoints):
    scores = {"1": [0.5, -1.0], "2": [0.9, -0.3], "3": [0.9, -0.4], "4": [0.1, 0.0]}
    for step in range(1, 7):
        save(checkpoints, step, {s: v for s, v in scores.items() if int(s) <= step})
    assert checkpoints.steps() == [2, 5, 6]
    assert best_step(scores, checkpoints.steps()) == 2
    assert best_step({}, [1, 2]) is None


def test_saving_the_same_step_again_replaces_only_what_differs(checkpoints):
    save(checkpoints, 4)
    stamp = os.stat(checkpoints.folder / "4").st_mtime_ns
    save(checkpoints, 4)
    assert os.stat(checkpoints.folder / "4").st_mtime_ns == stamp
    save(checkpoints, 4, {"4": [1.0]})
    assert checkpoints.newest().meta["scores"] == {"4": [1.0]}


def test_a_kill_between_the_renames_of_a_replacement_loses_nothing(checkpoints, monkeypatch):
    save(checkpoints, 4)
    (checkpoints.folder / "4").rename(checkpoints.folder / "old-4")
    checkpoints.recover()
    assert checkpoints.newest().step == 4
    save(checkpoints, 4, {"4": [1.0]})
    (checkpoints.folder / "old-4").mkdir()
    checkpoints.recover()
    checkpoints.sweep({})
    assert [p.name for p in checkpoints.folder.iterdir()] == ["4"]


def test_what_is_not_finite_is_not_saved(checkpoints):
    bad = state()
    bad["opt"][1].mu["head/bias"] = jnp.array([0, jnp.inf, 0, 0])
    with pytest.raises(FloatingPointError):
        checkpoints.save(1, bad, meta(1))
    assert not checkpoints.folder.exists()


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1 << 3
    path.write_bytes(data)


DAMAGES = {
    "flipped bit": flip,
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "zeroed": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "deleted": lambda path: path.unlink(),
}


def test_every_damage_to_every_file_is_found(checkpoints):
    save(checkpoints, 1)
    save(checkpoints, 2)
    folder, whole = checkpoints.folder / "2", checkpoints.folder.parent / "whole"
    shutil.copytree(folder, whole)
    files = [p.relative_to(whole) for p in whole.rglob("*") if p.is_file()]
    assert len(files) > 5
    for name in files:
        assert (whole / name).stat().st_size > 0
        for kind, damage in DAMAGES.items():
            damage(folder / name)
            found = checkpoints.newest()
            assert found.step == 1, f"{name}: {kind}"
            assert str(name) in found.damaged[2] or name.name == MANIFEST  # a hash flipped there accuses its file
            shutil.rmtree(folder)
            shutil.copytree(whole, folder)
    assert checkpoints.newest().step == 2


@pytest.mark.parametrize("position", [0.0, 0.01, 0.3, 0.6, 0.99])
def test_every_bit_of_the_manifest_counts(checkpoints, position):
    save(checkpoints, 1)
    path = checkpoints.folder / "1" / MANIFEST
    text = path.read_bytes()
    place = int(position * (len(text) - 1))
    for bit in range(8):
        path.write_bytes(text[:place] + bytes([text[place] ^ 1 << bit]) + text[place + 1 :])
        with pytest.raises(Damaged):
            checkpoints.verify(1)


def test_a_damaged_checkpoint_is_kept_aside_and_an_unfinished_save_removed(checkpoints):
    for step in (1, 2):
        save(checkpoints, step)
    (checkpoints.folder / "tmp-3" / "state").mkdir(parents=True)
    for _ in range(2):
        flip(checkpoints.folder / "2" / "meta.json")
        found = checkpoints.newest()
        assert "meta.json was changed" in found.damaged[2]
        lines = checkpoints.sweep(found.damaged)
        save(checkpoints, 2)
    assert lines == ["checkpoint 2 is damaged (meta.json was changed): kept aside as checkpoints/2.damaged-2"]
    assert sorted(p.name for p in checkpoints.folder.iterdir()) == ["1", "2", "2.damaged", "2.damaged-2"]
    assert checkpoints.newest().step == 2


def test_without_a_good_checkpoint_the_run_stops(checkpoints):
    assert checkpoints.newest() is None
    save(checkpoints, 1)
    flip(checkpoints.folder / "1" / "meta.json")
    with pytest.raises(UserError, match=r"no checkpoint of this run is whole: 1 \(meta.json was changed\)"):
        checkpoints.newest()
    checkpoints.sweep({1: "x"})
    with pytest.raises(UserError, match=r"no checkpoint of this run is whole: 1.damaged"):
        checkpoints.newest()


def test_a_save_that_fails_is_told_at_the_next_look(checkpoints, monkeypatch):
    save(checkpoints, 1)

    def full(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vit.training.storage.digest", full)
    checkpoints.save(2, state(2), meta(2))
    concurrent.futures.wait([checkpoints._saving])
    with pytest.raises(UserError, match=r"step 2 could not be written: .*No space left on device"):
        checkpoints.check()
    monkeypatch.undo()
    assert checkpoints.newest().step == 1
    checkpoints.sweep({})
    save(checkpoints, 2)
    assert checkpoints.newest().step == 2


def test_a_folder_that_vanishes_while_orbax_writes_is_not_made_anew(checkpoints, monkeypatch):
    save(checkpoints, 1)
    folder, elsewhere, write = checkpoints.folder, checkpoints.folder.parent.with_name("elsewhere"), checkpoints._orbax.save

    def late(path, args):
        folder.parent.rename(elsewhere)
        write(path, args=args)

    monkeypatch.setattr(checkpoints._orbax, "save", late)
    with pytest.raises(UserError, match="step 2 could not be written: the folder was moved or removed"):
        save(checkpoints, 2)
    assert not folder.parent.exists()
    with Checkpoints(elsewhere / folder.name) as there:
        assert there.newest().step == 1


def test_class_names_and_configuration_are_json(checkpoints):
    save(checkpoints, 1)
    assert json.loads((checkpoints.folder / "1" / "meta.json").read_text())["data"]["class_names"] == ["é", "b"]
