"""Every file of ``formats/`` that holds whole runs keeps the promises of a format."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pytest

from actscope.formats import FORMATS, RunFormat, export_run, import_run
from actscope.stores import ShardStorage, open_run
from actscope.testing.format_contract import FormatContract
from actscope.testing.store_contract import PLAN, SPEC

WHOLE = [
    name
    for name in FORMATS.names()
    if isinstance(FORMATS.get(name), RunFormat)
    and FORMATS.get(name).writes
    and FORMATS.get(name).lossless
]


class Shared(FormatContract):
    options: ClassVar[dict[str, str]] = {}

    def export(self, run, form, out, **options):
        options.setdefault("options", self.options)
        return export_run(run, form.name, out, **options)

    def restore(self, source, form, out):
        return import_run(source, form.name, out).path

    def write(self, path, batches, spec=SPEC, plan=PLAN):
        writer = ShardStorage(path.parent).open_run(path.name, spec, plan)
        for name, batch in batches:
            writer.append(name, batch, {"timings": {"forward": 1.5}, "halved": [1, 2]})
        return Path(writer.path)

    def read(self, path):
        return open_run(path)


class TestFormats(Shared):
    @pytest.fixture(params=[name for name in WHOLE if name != "csv"])
    def form(self, request):
        return FORMATS.get(request.param)


class TestCsv(Shared):
    pooled = True

    @pytest.fixture
    def form(self):
        return FORMATS.get("csv")


class TestOneFileAnExample(Shared):
    options: ClassVar[dict[str, str]] = {"per": "example"}

    @pytest.fixture
    def form(self):
        return FORMATS.get("safetensors")


class TestSmallChunks(Shared):
    """Chunks that end in the middle of units."""

    options: ClassVar[dict[str, str]] = {"chunk_rows": "3"}

    @pytest.fixture
    def form(self):
        return FORMATS.get("zarr")


def test_the_formats_are_the_files_of_the_room():
    assert WHOLE == [
        "csv", "datasets", "hdf5", "npy", "npz", "parquet", "pickle", "pt", "safetensors", "zarr",
    ]  # fmt: skip
    rest = sorted(set(FORMATS.names()) - set(WHOLE))
    assert rest == ["gguf", "pt_layers", "repeng", "saelens", "steering_vectors", "vllm"]
    for name in FORMATS.names():
        assert FORMATS.get(name).name == name
        assert FORMATS.get(name).holds in ("activations", "directions")
