"""Where runs are kept: safe against kills, checked on reading, and readable without torch.

``ShardStorage("runs").open_run("x")`` writes the run ``runs/x``; ``open_run("runs/x")`` reads it,
whichever store wrote it. One file here adds a store; it defines ``STORE``.
"""

from __future__ import annotations

from actscope.stores._care import DiskUsage, delete_run, disk_usage
from actscope.stores._diff import RunDiff, SiteDiff, diff_runs
from actscope.stores._merge import MergeReport, merge_runs
from actscope.stores._reader import Examples, Run, open_run
from actscope.stores._records import CommitRecord, SiteEntry
from actscope.stores._remote import as_folder, is_remote, local_folder
from actscope.stores._run_folder import STORES, FolderRunWriter, FolderStorage, stored_plan
from actscope.stores._slice import RunSlice, shuffled_rows
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
    "DiskUsage",
    "Examples",
    "FolderRunWriter",
    "FolderStorage",
    "HDF5Storage",
    "MergeReport",
    "NPZStorage",
    "NpyLayersStorage",
    "PickleStorage",
    "Problem",
    "Run",
    "RunDiff",
    "RunListing",
    "RunSlice",
    "RunSummary",
    "ShardStorage",
    "SiteDiff",
    "SiteEntry",
    "SiteSummary",
    "StoredUnit",
    "VerifyReport",
    "as_folder",
    "delete_run",
    "diff_runs",
    "disk_usage",
    "is_remote",
    "list_runs",
    "local_folder",
    "merge_runs",
    "open_run",
    "repair_run",
    "shuffled_rows",
    "stored_plan",
    "sweep",
    "verify_run",
]
