"""Where runs are kept: safe against kills, checked on reading, and readable without torch.

``ShardStorage("runs").open_run("x")`` writes the run ``runs/x``; ``open_run("runs/x")`` reads it,
whichever store wrote it. One file here adds a store; it defines ``STORE``.
"""

from __future__ import annotations

from actscope.stores._reader import Examples, Run, open_run
from actscope.stores._records import CommitRecord, SiteEntry
from actscope.stores._run_folder import STORES, FolderRunWriter, FolderStorage, stored_plan
from actscope.stores._stored_unit import StoredUnit
from actscope.stores._summary import RunSummary, SiteSummary
from actscope.stores._units import TABLES
from actscope.stores._verify import (
    Problem,
    RunListing,
    VerifyReport,
    list_runs,
    repair_run,
    sweep,
    verify_run,
)
from actscope.stores.hdf5 import HDF5Storage
from actscope.stores.npy_layers import NpyLayersStorage
from actscope.stores.npz import NPZStorage
from actscope.stores.pickle import PickleStorage
from actscope.stores.shards import ShardStorage

__all__ = [
    "STORES",
    "TABLES",
    "CommitRecord",
    "Examples",
    "FolderRunWriter",
    "FolderStorage",
    "HDF5Storage",
    "NPZStorage",
    "NpyLayersStorage",
    "PickleStorage",
    "Problem",
    "Run",
    "RunListing",
    "RunSummary",
    "ShardStorage",
    "SiteEntry",
    "SiteSummary",
    "StoredUnit",
    "VerifyReport",
    "list_runs",
    "open_run",
    "repair_run",
    "stored_plan",
    "sweep",
    "verify_run",
]
