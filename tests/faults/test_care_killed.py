"""Merging, repairing, sweeping and deleting are killed anywhere, and done again."""

from __future__ import annotations

import signal

import numpy as np
import pytest

from actscope.core.errors import BadInputError
from actscope.core.spec import UnitPlan, unit_id
from actscope.stores import ShardStorage, list_runs, open_run, repair_run, sweep, verify_run
from actscope.stores._io import CARE_FAIL_POINTS, FAIL_POINTS
from actscope.testing.store_contract import SITES, SPEC, sample_batch

FAULT = "SIGKILL while merging, repairing, sweeping or deleting"
RANGES = {"a": (0, 6, 4), "b": (5, 12, 3)}


@pytest.fixture
def pair(tmp_path):
    """Two runs whose ranges overlap, with units of two sizes."""
    paths = []
    for name, plan in RANGES.items():
        writer = ShardStorage(tmp_path).open_run(name, SPEC, UnitPlan(*plan).to_json())
        for bounds in UnitPlan(*plan).units():
            metadata = {"start": bounds[0], "stop": bounds[1]}
            writer.append(unit_id(*bounds), sample_batch(*bounds), metadata)
        paths.append(writer.path)
    return paths


def contents(path):
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def values(path):
    run = open_run(path)
    return [run.numpy(site) for site in SITES]


PLACES = [
    pytest.param(point, nth, marks=() if point.endswith("linked") else pytest.mark.faults)
    for point in FAIL_POINTS
    for nth in (1, 3)
]


@pytest.mark.parametrize(("point", "nth"), PLACES)
def test_a_killed_merge_goes_on(nursery, tmp_path, pair, injected, point, nth):
    kills = injected(FAULT, "1, 3")
    before = [contents(path) for path in pair]
    merge = ("care", "merge", tmp_path / "all", *pair)
    code, _, err = nursery.start(*merge, fail_at=f"{point}:{nth}").finish()
    assert code == (-signal.SIGKILL if nth == 1 or not point.startswith("run.") else 0), err
    with kills:
        code, _, err = nursery.start(*merge).finish()
        assert code == 0, err
        run = open_run(tmp_path / "all")
        assert run.complete and run.verify().ok and len(run) == 12
        whole = sample_batch(0, 12)
        assert all(np.array_equal(run.numpy(s), whole.arrays[s]) for s in SITES)
        assert [contents(path) for path in pair] == before
    code, _, err = nursery.start("care", "merge", tmp_path / "never-killed", *pair).finish()
    assert code == 0, err
    shards = [
        {p.name for p in (tmp_path / n / "shards").glob("[!.]*")} for n in ("all", "never-killed")
    ]
    assert shards[0] == shards[1]


def killed_at(point):
    return [p for p in CARE_FAIL_POINTS if p.startswith(point)]


@pytest.mark.parametrize("point", killed_at("repair"))
@pytest.mark.parametrize("nth", [1, 2])
def test_a_killed_repair_goes_on(nursery, pair, injected, point, nth):
    kills = injected(FAULT, "1, 3")
    shards = sorted((pair[1] / "shards").iterdir())
    for shard in shards[:2]:
        shard.write_bytes(shard.read_bytes()[:-1])
    ended = nursery.start("care", "repair", pair[1], fail_at=f"{point}:{nth}").finish()
    assert ended[0] == -signal.SIGKILL, ended
    with kills:
        assert len(open_run(pair[1]).units) in (1, 2, 3)
        repair_run(pair[1])
        run = open_run(pair[1])
        assert run.verify().ok and len(run.pending) == 2
        assert len(list((pair[1] / "damaged").iterdir())) == 2


@pytest.mark.parametrize("point", killed_at("sweep"))
def test_a_killed_sweep_goes_on(nursery, pair, injected, point):
    kills = injected(FAULT, "1, 3")
    for name in ("shards/stray-1.safetensors", "shards/stray-2.safetensors", "commits/.tmp-x"):
        (pair[0] / name).write_bytes(b"x")
    before = values(pair[0])
    ended = nursery.start("care", "sweep", pair[0], fail_at=f"{point}:2").finish()
    assert ended[0] == -signal.SIGKILL, ended
    with kills:
        assert len(verify_run(pair[0]).leftovers) == 1
        sweep(pair[0], older_than=0)
        assert verify_run(pair[0]).ok and verify_run(pair[0]).leftovers == []
        assert all(np.array_equal(a, b) for a, b in zip(values(pair[0]), before, strict=True))


@pytest.mark.parametrize("point", killed_at("delete"))
def test_a_killed_delete_leaves_no_half_run(nursery, tmp_path, pair, injected, point):
    kills = injected(FAULT, "1, 3")
    ended = nursery.start("care", "delete", pair[0], fail_at=f"{point}:1").finish()
    assert ended[0] == -signal.SIGKILL, ended
    with kills:
        assert [run.path for run in list_runs(tmp_path)] == [pair[1]]
        with pytest.raises(BadInputError):
            open_run(pair[0])
        assert verify_run(pair[1]).ok
        left = [p for p in tmp_path.iterdir() if p.name.startswith(".tmp-deleted-")]
        assert len(left) == (point != "delete.removed")


def test_these_are_all_points_of_looking_after_runs(tmp_path, pair, monkeypatch):
    from actscope.stores import _care, _io, _verify, delete_run

    seen = []
    for module in (_io, _care, _verify):
        monkeypatch.setattr(module, "fail_point", seen.append)
    (pair[0] / "shards" / "stray.safetensors").write_bytes(b"x")
    next((pair[0] / "commits").iterdir()).write_bytes(b"{}")
    repair_run(pair[0])
    sweep(pair[0], older_than=0)
    delete_run(pair[0])
    assert set(CARE_FAIL_POINTS) == {p for p in seen if not p.startswith("folder.")}
