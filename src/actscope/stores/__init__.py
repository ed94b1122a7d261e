"""Where runs are kept: safe against kills, checked on reading, and readable without torch.

``ShardStorage("runs").open_run("x")`` writes the run ``runs/x``; ``open_run("runs/x")`` reads it,
whichever store wrote it. One file here adds a store; it defines ``STORE``.

What writes files elsewhere (formats, studies) does it with the same tools: ``publish``,
``put_if_absent`` and ``make_folder`` for files that appear whole or not at all, ``disk_errors`` for
what goes wrong, ``checksum`` for what was written, ``dump_json`` for records.
"""

from __future__ import annotations

from actscope.stores._care import DiskUsage, delete_run, disk_usage
from actscope.stores._diff import RunDiff, SiteDiff, diff_runs
from actscope.stores._examples import Examples
from actscope.stores._formats import FileSums, UnitFormat, as_bytes, checksum
from actscope.stores._io import (
    TEMP_PREFIX,
    disk_errors,
    fail_point,
    make_folder,
    publish,
    put_if_absent,
    read_limited,
    sync_folder,
)
from actscope.stores._merge import MergeReport, merge_runs
from actscope.stores._npy import npy_header, parse_npy, read_npy_header
from actscope.stores._plain_pickle import read_plain_pickle, walk_arrays
from actscope.stores._reader import Run, open_run
from actscope.stores._records import (
    Coding,
    CommitRecord,
    SiteEntry,
    dump_json,
    dump_record,
    encode_unit,
    load_record,
)
from actscope.stores._remote import as_folder, is_remote, local_folder
from actscope.stores._run_folder import STORES, FolderRunWriter, FolderStorage, stored_plan
from actscope.stores._safetensors import SafetensorsFile, safetensors_header, write_safetensors
from actscope.stores._slice import RunSlice, shuffled_rows
from actscope.stores._stored_unit import StoredUnit
from actscope.stores._summary import RunSummary, SiteSummary
from actscope.stores._tags import TAGS_FILE, checked_tag, read_tags, tag_run
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
    "TAGS_FILE",
    "TEMP_PREFIX",
    "Coding",
    "CommitRecord",
    "DiskUsage",
    "Examples",
    "FileSums",
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
    "SafetensorsFile",
    "ShardStorage",
    "SiteDiff",
    "SiteEntry",
    "SiteSummary",
    "StoredUnit",
    "UnitFormat",
    "VerifyReport",
    "as_bytes",
    "as_folder",
    "checked_tag",
    "checksum",
    "delete_run",
    "diff_runs",
    "disk_errors",
    "disk_usage",
    "dump_json",
    "dump_record",
    "encode_unit",
    "fail_point",
    "is_remote",
    "list_runs",
    "load_record",
    "local_folder",
    "make_folder",
    "merge_runs",
    "npy_header",
    "open_run",
    "parse_npy",
    "publish",
    "put_if_absent",
    "read_limited",
    "read_npy_header",
    "read_plain_pickle",
    "read_tags",
    "repair_run",
    "safetensors_header",
    "shuffled_rows",
    "stored_plan",
    "sweep",
    "sync_folder",
    "tag_run",
    "verify_run",
    "walk_arrays",
    "write_safetensors",
]
