"""Anything that can happen to runs, in any order, against a dictionary that cannot go wrong."""

from __future__ import annotations

import shutil
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    rule,
    run_state_machine_as_test,
)

from actscope.core.errors import BadInputError, DuplicateUnitError
from actscope.core.spec import UnitPlan, unit_id
from actscope.stores import (
    ShardStorage,
    delete_run,
    diff_runs,
    merge_runs,
    open_run,
    repair_run,
    sweep,
    verify_run,
)
from actscope.stores._io import FAIL_POINTS
from actscope.testing.store_contract import SITES, SPEC, sample_batch

Bounds = tuple[int, int]

EXPORTS: list[Callable[[Path, dict[Bounds, int]], None]] = []
"""Called with a run and its units; an exporter's test adds one that exports it and compares."""

WIDTH = 16


class Stores(RuleBasedStateMachine):
    """Runs on disk, and what they must hold: run -> plan, and unit -> seed of its values."""

    start: Callable[..., object]
    steps = None

    runs = Bundle("runs")

    def __init__(self):
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.plans: dict[str, UnitPlan] = {}
        self.held: dict[str, dict[Bounds, int]] = {}
        self.names = 0

    def teardown(self):
        shutil.rmtree(self.folder)
        if self.steps is not None:
            self.steps.add(1)

    def new_name(self) -> str:
        self.names += 1
        return f"run-{self.names}"

    def write(self, name: str, bounds: Bounds, seed: int = 0) -> None:
        writer = ShardStorage(self.folder).open_run(name, SPEC, self.plans[name].to_json())
        batch = sample_batch(*bounds, width=WIDTH, seed=seed)
        writer.append(unit_id(*bounds), batch, {"start": bounds[0], "stop": bounds[1]})
        writer.close()

    @rule(
        target=runs,
        start=st.integers(0, 12),
        length=st.integers(1, 12),
        size=st.integers(1, 5),
    )
    def create(self, start, length, size):
        name = self.new_name()
        self.plans[name] = UnitPlan(start, start + length, size)
        self.held[name] = {}
        ShardStorage(self.folder).open_run(name, SPEC, self.plans[name].to_json()).close()
        return name

    @rule(name=runs, which=st.integers(0, 50))
    def append(self, name, which):
        units = self.plans[name].units()
        bounds = units[which % len(units)]
        self.write(name, bounds)
        self.held[name].setdefault(bounds, 0)

    @rule(name=runs, which=st.integers(0, 50))
    def duplicate_with_other_content(self, name, which):
        if not self.held[name]:
            return
        bounds = sorted(self.held[name])[which % len(self.held[name])]
        with pytest.raises(DuplicateUnitError):
            self.write(name, bounds, seed=1)

    @rule(name=runs, point=st.sampled_from(FAIL_POINTS), nth=st.integers(1, 3))
    def kill(self, name, point, nth):
        """A process that writes all that is left is killed at a point, if it gets there."""
        plan = self.plans[name]
        if plan.cuts:
            return  # the writing program takes plain plans
        plain = f"plan={plan.start},{plan.stop},{plan.unit_size}"
        options = [f"run={name}", plain, f"width={WIDTH}"]
        fail_at = f"{point}:{nth}"
        code, printed, err = self.start("shards", self.folder, *options, fail_at=fail_at).finish()
        assert code in (0, -signal.SIGKILL), err
        self.trust(name, {unit_id(*bounds) for bounds in self.held[name]} | set(printed))

    @rule(name=runs, workers=st.integers(1, 3))
    def resume(self, name, workers):
        """Several workers do all that is left, each of them all of it."""
        plan = self.plans[name]
        if plan.cuts:
            for bounds in plan.units():
                self.write(name, bounds)
        else:
            plain = f"plan={plan.start},{plan.stop},{plan.unit_size}"
            options = [f"run={name}", plain, f"width={WIDTH}"]
            started = [self.start("shards", self.folder, *options) for _ in range(workers)]
            ends = [process.finish() for process in started]
            assert [code for code, _, _ in ends] == [0] * workers, ends
        self.trust(name, set(plan.unit_ids()))
        assert open_run(self.folder / name).complete

    def trust(self, name: str, at_least: set[str]) -> None:
        """Take over what is on disk, which must be at least something."""
        found = set(open_run(self.folder / name).units)
        assert at_least <= found
        for bounds in self.plans[name].units():
            if unit_id(*bounds) in found:
                self.held[name].setdefault(bounds, 0)

    @rule(name=runs, fast=st.booleans())
    def verify(self, name, fast):
        report = verify_run(self.folder / name, fast=fast)
        assert report.ok and report.units == len(self.held[name])

    @rule(name=runs)
    def sweep(self, name):
        sweep(self.folder / name, older_than=0)
        assert verify_run(self.folder / name).leftovers == []

    @rule(name=runs, which=st.integers(0, 50), place=st.floats(0, 1, exclude_max=True))
    def damage_and_repair(self, name, which, place):
        """A bit flips in a unit's data or record; repair takes back this unit and no other."""
        if not self.held[name]:
            return
        bounds = sorted(self.held[name])[which % len(self.held[name])]
        path = self.folder / name
        commit = path / "commits" / f"{unit_id(*bounds)}.json"
        (unit,) = [u for u in open_run(path).stored_units if u.commit.unit == unit_id(*bounds)]
        file = (commit, unit.path)[which % 2]
        data = bytearray(file.read_bytes())
        data[int(place * len(data))] ^= 1 << which % 8
        file.write_bytes(data)
        report = repair_run(path)
        assert {p.file for p in report.problems} == {file.relative_to(path).as_posix()}
        del self.held[name][bounds]

    @rule(target=runs, first=runs, second=runs)
    def merge(self, first, second):
        name = self.new_name()
        merge_runs([self.folder / first, self.folder / second], self.folder / name)
        run = open_run(self.folder / name)
        assert run.plan is not None
        self.plans[name] = run.plan
        both = [self.indices(first), self.indices(second)]
        self.held[name] = {
            (low, high): 0
            for low, high in run.plan.units()
            if set(range(low, high)) <= both[0] | both[1]
        }
        assert self.indices(name) == both[0] | both[1]
        return name

    def indices(self, name: str) -> set[int]:
        return {i for bounds in self.held[name] for i in range(*bounds)}

    @rule(target=runs, name=consumes(runs))
    def move(self, name):
        new = self.new_name()
        (self.folder / name).rename(self.folder / new)
        self.plans[new], self.held[new] = self.plans.pop(name), self.held.pop(name)
        return new

    @rule(name=consumes(runs))
    def delete(self, name):
        delete_run(self.folder / name)
        del self.plans[name], self.held[name]
        with pytest.raises(BadInputError):
            open_run(self.folder / name)

    @rule(first=runs, second=runs)
    def diff(self, first, second):
        found = diff_runs(self.folder / first, self.folder / second)
        assert found.examples == len(self.indices(first) & self.indices(second))
        assert found.same == (self.indices(first) == self.indices(second))

    @rule(name=runs)
    def export(self, name):
        for exported in EXPORTS:
            exported(self.folder / name, self.held[name])

    @invariant()
    def the_disk_holds_what_the_dictionary_holds(self):
        assert {p.name for p in self.folder.iterdir()} == set(self.held)
        for name, held in self.held.items():
            run = open_run(self.folder / name)
            assert list(run.units) == [unit_id(*bounds) for bounds in sorted(held)]
            assert [record.index for record in run.examples] == sorted(self.indices(name))
            assert run.complete == (len(held) == len(self.plans[name].units()))
            for bounds, unit in zip(sorted(held), run.stored_units, strict=True):
                expected = sample_batch(*bounds, width=WIDTH, seed=held[bounds])
                for site in SITES:
                    assert np.array_equal(unit.read(str(site)), expected.arrays[site])
            run.close()


def check(start, steps, examples, length, phases=tuple(Phase)):
    class Machine(Stores):
        pass

    Machine.start = staticmethod(start)
    Machine.steps = steps
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=length,
            deadline=None,
            phases=phases,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_a_few_histories(start, injected):
    check(start, injected("histories of a state machine against a dictionary", "1-4"), 5, 10)


@pytest.mark.faults
def test_many_histories(start, injected):
    check(start, injected("histories of a state machine against a dictionary", "1-4"), 60, 30)


@pytest.mark.faults
def test_the_machine_would_notice(start, monkeypatch, tmp_path):
    """A store that forgets to refuse other content does not get through."""
    from actscope.stores import _run_folder

    monkeypatch.setattr(_run_folder, "refuse_other_content", lambda *_: None)
    with pytest.raises(BaseException, match="DID NOT RAISE"):
        check(start, None, 60, 12, [Phase.generate])
