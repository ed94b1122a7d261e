"""Runs on S3: a real server of this machine (moto), and s3fs as users have it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from remote_folders import UNITS, data_files, race, write

from actscope.core.errors import BadInputError, OutputFolderError, StorageError
from actscope.core.spec import unit_id
from actscope.stores import (
    HDF5Storage,
    NPZStorage,
    ShardStorage,
    _io,
    as_folder,
    list_runs,
    open_run,
    repair_run,
    sweep,
    verify_run,
)
from actscope.testing.store_contract import SITES, StoreContract, sample_batch

s3fs = pytest.importorskip("s3fs")

WHOLE = sample_batch(0, 12)
CHILD = """
import sys
sys.path[:0] = sys.argv[2].split(":")
from remote_folders import write
print(write(sys.argv[1]))
"""


@pytest.fixture(scope="module")
def server():
    """The address of an S3 server, one request at a time: each is one step, as on S3."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        protocol_version = "HTTP/1.1"

        def log(self, *_args, **_kwargs):
            pass

    app = DomainDispatcherApplication(create_backend_app)
    one_at_a_time = threading.Lock()

    def locked(environ, start_response):
        with one_at_a_time:
            return list(app(environ, start_response))

    made = make_server("127.0.0.1", 0, locked, threaded=True, request_handler=Quiet)
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{made.server_port}"
    made.shutdown()
    made.server_close()
    thread.join()


@pytest.fixture
def account(server, monkeypatch):
    """The environment of somebody who uses that server."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", "/nonexistent")
    return server


_BUCKETS = iter(range(10**6))


@pytest.fixture
def folder(account):
    """A folder in a bucket of its own."""
    bucket = f"bucket-{next(_BUCKETS)}"
    s3fs.S3FileSystem(use_listings_cache=False).mkdir(bucket)
    return f"s3://{bucket}/some/runs"


def is_whole(path):
    with open_run(path) as run:
        right = all(np.array_equal(run.numpy(site), WHOLE.arrays[site]) for site in SITES)
        return right and run.complete and run.verify().ok


class TestShardsOnS3(StoreContract):
    @pytest.fixture
    def storage(self, folder):
        return ShardStorage(folder)

    def read(self, path):
        return open_run(path)

    @pytest.mark.slow
    @pytest.mark.parametrize("seed", range(3))
    def test_a_flipped_bit_is_reported_and_never_returned(self, storage, seed):
        super().test_a_flipped_bit_is_reported_and_never_returned(storage, seed)


@pytest.mark.parametrize("store", [NPZStorage, HDF5Storage])
def test_other_stores_on_s3(folder, store):
    path = write(folder, store=store)
    assert str(path) == f"{folder}/r" and is_whole(path)
    assert [(run.state, run.n_examples) for run in list_runs(folder)] == [("complete", 12)]


def test_the_server_honours_the_condition(folder):
    files = s3fs.S3FileSystem(use_listings_cache=False)
    place = f"{folder}/x".removeprefix("s3://")
    files.pipe_file(place, b"one", mode="create")
    with pytest.raises(OSError):
        files.pipe_file(place, b"two", mode="create")
    assert files.cat_file(place) == b"one"


@pytest.mark.parametrize(("seeds", "rounds"), [((0, 1), 50), ((0, 0), 10)])
def test_two_writers_of_one_unit_leave_one_commit(folder, monkeypatch, seeds, rounds):
    lost, create = [], _io.create

    def noticed(path, data):
        created = create(path, data)
        lost.extend([path] * (not created))
        return created

    monkeypatch.setattr(_io, "create", noticed)
    ends = race(folder, rounds, seeds)
    assert len(ends) == rounds
    for path, said in ends:
        assert sorted(said) == (["refused", "taken"] if seeds == (0, 1) else ["taken", "taken"])
        with open_run(path) as run:
            assert run.units == ("u",)
            expected = sample_batch(0, 2, seed=seeds[said.index("taken")]).arrays
            assert np.array_equal(run.numpy(SITES[0]), expected[SITES[0]])
        for part in ("commits", "shards"):
            assert len(list((path / part).iterdir())) == 1
    commits = [path for path in lost if path.parent.name == "commits"]
    assert len(commits) > rounds / 2, "the server has to refuse: most rounds are decided there"


@pytest.mark.parametrize("point", ["data.sent", "commit.sending", "commit.sent"])
def test_a_killed_writer_leaves_whole_units_and_another_goes_on(folder, point):
    tests = str(Path(__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, "-c", CHILD, folder, tests],
        env={**os.environ, "ACTSCOPE_FAIL_AT": f"{point}:2"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    path = as_folder(folder) / "r"
    with open_run(path) as run:
        assert len(run.units) == 1 + (point == "commit.sent") and run.verify().ok
    assert write(folder) == path and is_whole(path)
    assert data_files(path) == data_files(write(folder, "whole"))
    sweep(path, older_than=0)
    assert verify_run(path).leftovers == [] and is_whole(path)


def test_a_damaged_shard_is_found_and_taken_back(folder):
    path = write(folder)
    shard = sorted((path / "shards").iterdir())[1]
    data = bytearray(shard.read_bytes())
    data[-3] ^= 1
    shard.write_bytes(bytes(data))
    assert [p.file for p in verify_run(path).problems] == [f"shards/{shard.name}"]
    repair_run(path)
    with open_run(path) as run:
        assert run.pending == (unit_id(*UNITS[1]),)
    assert is_whole(write(folder))


def test_options_reach_the_server(server, folder, monkeypatch):
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    place = as_folder(folder, endpoint_url=server, key="me", secret="hidden")
    path = write(place)
    assert is_whole(path) and "hidden" not in repr(open_run(path))


def test_a_missing_bucket_is_said(account):
    with pytest.raises(BadInputError, match="there is no run"):
        open_run("s3://no-such-bucket/runs/r")
    with pytest.raises(OutputFolderError, match="make the bucket"):
        write("s3://no-such-bucket/runs")


def test_nobody_who_asks_is_told_to_say_who(server, folder, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    stranger = as_folder(folder, endpoint_url=server, max_concurrency=9)
    with pytest.raises(StorageError, match="credentials"):
        open_run(stranger / "r")
    with pytest.raises(StorageError, match="credentials"):
        write(stranger)


def test_a_server_that_is_not_there_is_said(account):
    config = {"retries": {"max_attempts": 0}, "connect_timeout": 1}
    nowhere = as_folder("s3://b/runs", endpoint_url="http://127.0.0.1:9", config_kwargs=config)
    with pytest.raises(StorageError, match="cannot be reached"):
        open_run(nowhere / "r")
