"""Files that want to run code, leave their folder, or eat all memory.

``CORPUS`` has (name, format, what writes it). A writer gets an empty folder and the path of a file
that must never come to exist, and returns what is to be imported.
"""

from __future__ import annotations

import copyreg
import gzip
import io
import json
import os
import pickle
import struct
import tarfile
import zipfile

import numpy as np

CORPUS = []


def hostile(form, suffix=""):
    """Register a writer; where it returns bytes they become ``evil`` with a suffix."""

    def register(make):
        def write(folder, sentinel):
            made = make(folder, sentinel)
            if isinstance(made, bytes):
                path = folder / f"evil{suffix}"
                path.write_bytes(made)
                return path
            return made

        CORPUS.append((make.__name__, form, write))
        return make

    return register


class Calls:
    """Pickles as a call."""

    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


def command(sentinel):
    return f"touch {sentinel}"


# -- pickles -----------------------------------------------------------------------------------


@hostile("pickle", ".pkl.gz")
def gzip_of_os_system(folder, sentinel):
    return gzip.compress(pickle.dumps(Calls(os.system, command(sentinel))))


@hostile("pickle", ".pkl.gz")
def gzip_bomb(folder, sentinel):
    zeros = np.zeros((1 << 13, 1 << 13), np.float32)
    return gzip.compress(pickle.dumps({"blocks.0.resid_post": zeros}), 9)


@hostile("pickle", ".pkl.gz")
def gzip_cut_short(folder, sentinel):
    array = np.random.default_rng(0).standard_normal((64, 64))
    return gzip.compress(pickle.dumps({"blocks.0.resid_post": array}))[:-100]


@hostile("pickle", ".pkl.gz")
def gzip_that_is_none(folder, sentinel):
    return pickle.dumps({"blocks.0.resid_post": np.zeros((2, 2))})


@hostile("pickle", ".pkl")
def a_billion_values_by_reference(folder, sentinel):
    inner = dict.fromkeys(range(1000), 0)
    return pickle.dumps(dict.fromkeys(range(1000), dict.fromkeys(range(1000), inner)))


@hostile("pickle", ".pkl")
def os_system(folder, sentinel):
    return pickle.dumps(Calls(os.system, command(sentinel)))


@hostile("pickle", ".pkl")
def os_system_protocol_0(folder, sentinel):
    return f"cposix\nsystem\n(S'{command(sentinel)}'\ntR.".encode()


@hostile("pickle", ".pkl")
def os_system_protocol_2_inside_a_dictionary(folder, sentinel):
    return pickle.dumps({"blocks.0.resid_post": Calls(os.system, command(sentinel))}, 2)


@hostile("pickle", ".pkl")
def builtins_eval(folder, sentinel):
    return pickle.dumps(Calls(eval, f"__import__('os').system({command(sentinel)!r})"), 4)


@hostile("pickle", ".pkl")
def builtins_getattr_chain(folder, sentinel):
    names = [b"\x8c" + bytes([len(word)]) + word for word in (b"builtins", b"getattr")]
    return b"\x80\x04" + b"".join(names) + b"\x93cposix\nsystem\n\x8c\x08__call__\x86R."


@hostile("pickle", ".pkl")
def subprocess_popen(folder, sentinel):
    import subprocess

    return pickle.dumps(Calls(subprocess.Popen, command(sentinel), -1, None), 5)


@hostile("pickle", ".pkl")
def instance_of_a_class(folder, sentinel):
    return b"\x80\x04" + b"c" + b"collections\nOrderedDict\n" + b")\x81."


@hostile("pickle", ".pkl")
def instance_opcode(folder, sentinel):
    return f"\x80\x02(S'{command(sentinel)}'\niposix\nsystem\n.".encode("latin-1")


@hostile("pickle", ".pkl")
def object_opcode(folder, sentinel):
    return b"\x80\x02(cposix\nsystem\nX" + _counted(command(sentinel)) + b"o."


@hostile("pickle", ".pkl")
def extension_registry(folder, sentinel):
    copyreg.add_extension("posix", "system", 0x7E57)
    try:
        return pickle.dumps(Calls(os.system, command(sentinel)), 2)
    finally:
        copyreg.remove_extension("posix", "system", 0x7E57)


@hostile("pickle", ".pkl")
def persistent_id(folder, sentinel):
    return b"\x80\x04\x8c\x03abcQ."


@hostile("pickle", ".pkl")
def numpy_object_array(folder, sentinel):
    inner = np.array([Calls(os.system, command(sentinel))], dtype=object)
    return pickle.dumps({"blocks.0.resid_post": inner}, 4)


@hostile("pickle", ".pkl")
def numpy_load_by_its_name(folder, sentinel):
    return b"\x80\x04\x8c\x05numpy\x94\x8c\x04load\x94\x93\x94\x8c\x01x\x94\x85\x94R."


@hostile("pickle", ".pkl")
def numpy_name_with_dots(folder, sentinel):
    return b"\x80\x04\x8c\x05numpy\x94\x8c\x15core.os.system.__call__\x94\x93."


@hostile("pickle", ".pkl")
def numpy_array_whose_shape_lies(folder, sentinel):
    data = pickle.dumps({"blocks.0.resid_post": np.zeros((2, 3), "f4")}, 4)
    return data.replace(b"K\x02K\x03\x86", b"K\x7fK\x7f\x86")


@hostile("pickle", ".pkl")
def numpy_array_of_a_subclass(folder, sentinel):
    data = pickle.dumps({"blocks.0.resid_post": np.zeros((2, 3), "f4")}, 4)
    return data.replace(b"\x8c\x07ndarray", b"\x8c\x07memmap\x00")


@hostile("pickle", ".pkl")
def numpy_records(folder, sentinel):
    return pickle.dumps({"blocks.0.resid_post": np.zeros(2, [("a", "f4"), ("b", "O")])}, 4)


@hostile("pickle", ".pkl")
def bytes_of_a_petabyte(folder, sentinel):
    return b"\x80\x04\x8e" + struct.pack("<Q", 1 << 50) + b"abc."


@hostile("pickle", ".pkl")
def bytearray_of_a_petabyte(folder, sentinel):
    return b"\x80\x05\x96" + struct.pack("<Q", 1 << 50) + b"abc."


@hostile("pickle", ".pkl")
def text_of_a_petabyte(folder, sentinel):
    return b"\x80\x04\x8d" + struct.pack("<Q", 1 << 50) + b"abc."


@hostile("pickle", ".pkl")
def memo_of_four_billion(folder, sentinel):
    return b"\x80\x02}r" + struct.pack("<I", 0xFFFFFFFF) + b"j" + struct.pack("<I", 7) + b"."


@hostile("pickle", ".pkl")
def lists_in_lists_in_lists(folder, sentinel):
    return b"\x80\x04" + b"]" * 200_000 + b"a" * 199_999 + b"."


@hostile("pickle", ".pkl")
def doubling_lists(folder, sentinel):
    """Each list holds the one before twice: 2^64 leaves for whoever walks them."""
    return (
        b"\x80\x04]\x94"
        + b"".join(b"](h" + bytes([n]) + b"h" + bytes([n]) + b"e\x94" for n in range(64))
        + b"."
    )


@hostile("pickle", ".pkl")
def stack_underflow(folder, sentinel):
    return b"\x80\x04\x85R."


@hostile("pickle", ".pkl")
def a_dictionary_with_a_list_as_key(folder, sentinel):
    return b"\x80\x04}]K\x01s."


@hostile("pickle", ".pkl")
def not_a_pickle(folder, sentinel):
    return b"#!/bin/sh\ntouch " + str(sentinel).encode()


def _counted(text):
    return struct.pack("<I", len(text)) + text.encode()


# -- torch -------------------------------------------------------------------------------------


def _pt(payload, name="evil/data.pkl", more=(), compression=zipfile.ZIP_STORED):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        archive.writestr(name, payload)
        archive.writestr("evil/version", b"3\n")
        archive.writestr("evil/byteorder", b"little")
        for other, data in more:
            archive.writestr(other, data)
    return out.getvalue()


@hostile("pt", ".pt")
def torch_os_system(folder, sentinel):
    return _pt(pickle.dumps(Calls(os.system, command(sentinel)), 2))


@hostile("pt_layers", ".pt")
def torch_layers_os_system(folder, sentinel):
    (folder / "layer_0.pt").write_bytes(_pt(pickle.dumps(Calls(os.system, command(sentinel)), 2)))
    return folder


@hostile("repeng", ".pt")
def torch_directions_os_system(folder, sentinel):
    return _pt(pickle.dumps(Calls(os.system, command(sentinel)), 2))


@hostile("steering_vectors", ".pt")
def torch_directions_eval(folder, sentinel):
    return _pt(pickle.dumps(Calls(eval, f"open({str(sentinel)!r}, 'w')"), 2))


@hostile("pt", ".pt")
def torch_legacy_pickle(folder, sentinel):
    return pickle.dumps(Calls(os.system, command(sentinel)), 2)


@hostile("pt", ".pt")
def torch_saved_module(folder, sentinel):
    import torch

    out = io.BytesIO()
    torch.save(torch.nn.Linear(2, 2), out)
    return out.getvalue()


@hostile("pt", ".pt")
def torch_legacy_tar(folder, sentinel):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        info = tarfile.TarInfo("../../pickle")
        data = pickle.dumps(Calls(os.system, command(sentinel)), 2)
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


@hostile("pt", ".pt")
def torch_zip_slip(folder, sentinel):
    return _pt(b"\x80\x02}.", more=[(f"../../..{sentinel}", b"x")])


@hostile("pt", ".pt")
def torch_absolute_name(folder, sentinel):
    return _pt(b"\x80\x02}.", more=[(str(sentinel), b"x")])


@hostile("pt", ".pt")
def torch_zip_bomb(folder, sentinel):
    return _pt(b"\0" * (64 << 20), compression=zipfile.ZIP_DEFLATED)


@hostile("pt", ".pt")
def torch_sparse(folder, sentinel):
    import torch

    out = io.BytesIO()
    torch.save({"blocks.0.resid_post": torch.eye(2).to_sparse()}, out)
    return out.getvalue()


# -- numpy --------------------------------------------------------------------------------------


def _npy(header, data=b"", version=b"\x01\x00", length=None):
    raw = header.encode("latin-1")
    width = "<H" if version == b"\x01\x00" else "<I"
    return b"\x93NUMPY" + version + struct.pack(width, length or len(raw)) + raw + data


@hostile("npy", "")
def npy_object_array(folder, sentinel):
    path = folder / "blocks.0.resid_post.npy"
    np.save(path, np.array([Calls(os.system, command(sentinel))], object), allow_pickle=True)
    return path


@hostile("npy")
def npy_header_that_calls(folder, sentinel):
    path = folder / "blocks.0.resid_post.npy"
    call = f"__import__('os').system({command(sentinel)!r})"
    path.write_bytes(_npy("{'descr': " + call + ", 'fortran_order': False, 'shape': (1,), }\n"))
    return path


def _npy_file(folder, *args, **options):
    path = folder / "blocks.0.resid_post.npy"
    path.write_bytes(_npy(*args, **options))
    return path


PLAIN = "{{'descr': '<f4', 'fortran_order': False, 'shape': {}, }}\n"


@hostile("npy")
def npy_header_of_four_gigabytes(folder, sentinel):
    return _npy_file(folder, PLAIN.format("(1, 1)"), version=b"\x02\x00", length=0xFFFFFFFF)


@hostile("npy")
def npy_shape_of_a_petabyte(folder, sentinel):
    return _npy_file(folder, PLAIN.format("(1073741824, 1048576)"), b"\0" * 64)


@hostile("npy")
def npy_shape_that_overflows(folder, sentinel):
    return _npy_file(folder, PLAIN.format(f"({2**40}, {2**40})"), b"\0" * 64)


@hostile("npy")
def npy_negative_shape(folder, sentinel):
    return _npy_file(folder, PLAIN.format("(-1, 4)"), b"\0" * 64)


@hostile("npy")
def npy_records(folder, sentinel):
    header = "{'descr': [('a', '<f4'), ('b', '|O')], 'fortran_order': False, 'shape': (1,), }\n"
    return _npy_file(folder, header, b"\0" * 64)


@hostile("npy")
def npy_nested_brackets(folder, sentinel):
    return _npy_file(folder, "{'descr': " + "(" * 9000 + ")" * 900 + "}\n")


@hostile("npy")
def npy_link_to_another_file(folder, sentinel):
    np.save(folder.parent / "other.npy", np.zeros((2, 2)))
    path = folder / "blocks.0.resid_post.npy"
    path.symlink_to(folder.parent / "other.npy")
    return path


@hostile("npz", ".npz")
def npz_object_array(folder, sentinel):
    out = io.BytesIO()
    array = np.array([Calls(os.system, command(sentinel))], object)
    np.savez(out, **{"blocks.0.resid_post": array})
    return out.getvalue()


@hostile("npz", ".npz")
def npz_bomb(folder, sentinel):
    out = io.BytesIO()
    np.savez_compressed(out, **{"blocks.0.resid_post": np.zeros((1 << 12, 1 << 12))})
    return out.getvalue()


@hostile("npz", ".npz")
def npz_zip_slip(folder, sentinel):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(f"../../../../../..{sentinel}.npy", _npy(PLAIN.format("(0, 1)")))
    return out.getvalue()


@hostile("npz", ".npz")
def npz_size_that_lies(folder, sentinel):
    out = io.BytesIO()
    np.savez(out, **{"blocks.0.resid_post": np.zeros((2, 2))})
    data = bytearray(out.getvalue())
    at = data.index(b"PK\x01\x02") + 24
    data[at : at + 4] = struct.pack("<I", 0x7FFFFFFF)
    return bytes(data)


# -- HDF5 -----------------------------------------------------------------------------------------


def _h5(folder, fill):
    import h5py

    with h5py.File(folder / "evil.h5", "w") as file:
        fill(h5py, file)
    return folder / "evil.h5"


KEY = "blocks.0.resid_post"


@hostile("hdf5")
def hdf5_external_link(folder, sentinel):
    import h5py

    with h5py.File(folder.parent / "secret.h5", "w") as file:
        file["x"] = np.zeros((2, 2))
    return _h5(folder, lambda h5, f: f.__setitem__(KEY, h5.ExternalLink("../secret.h5", "x")))


@hostile("hdf5")
def hdf5_soft_link(folder, sentinel):
    return _h5(folder, lambda h5, f: f.__setitem__(KEY, h5.SoftLink("/nothing")))


@hostile("hdf5")
def hdf5_external_storage(folder, sentinel):
    def fill(h5, file):
        file.create_dataset(KEY, (1, 4), "u1", external=[("/etc/passwd", 0, 4)])

    return _h5(folder, fill)


@hostile("hdf5")
def hdf5_virtual_dataset(folder, sentinel):
    def fill(h5, file):
        layout = h5.VirtualLayout((2, 2), "f8")
        layout[:] = h5.VirtualSource("../secret.h5", "x", (2, 2))
        file.create_virtual_dataset(KEY, layout)

    return _h5(folder, fill)


@hostile("hdf5")
def hdf5_objects(folder, sentinel):
    def fill(h5, file):
        data = file.create_dataset(KEY, (1, 1), h5.vlen_dtype(np.uint8))
        data[0, 0] = np.frombuffer(pickle.dumps(Calls(os.system, command(sentinel))), np.uint8)

    return _h5(folder, fill)


@hostile("hdf5")
def hdf5_references(folder, sentinel):
    return _h5(folder, lambda h5, f: f.create_dataset(KEY, (2, 2), h5.ref_dtype))


@hostile("hdf5")
def hdf5_a_petabyte_of_nothing(folder, sentinel):
    def fill(h5, file):
        file.create_dataset(KEY, (1 << 30, 1 << 20), "f4", chunks=(1, 1024))

    return _h5(folder, fill)


@hostile("hdf5")
def hdf5_compressed_bomb(folder, sentinel):
    def fill(h5, file):
        file.create_dataset(KEY, data=np.zeros((4096, 4096)), compression="gzip")

    return _h5(folder, fill)


@hostile("hdf5", ".h5")
def hdf5_cut_short(folder, sentinel):
    path = _h5(folder, lambda h5, f: f.__setitem__(KEY, np.zeros((64, 64))))
    return path.read_bytes()[:600]


# -- safetensors ----------------------------------------------------------------------------------


def _safetensors(header, data=b"", length=None):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def _entry(shape, stop, start=0, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


@hostile("safetensors", ".safetensors")
def safetensors_header_of_exabytes(folder, sentinel):
    return _safetensors({}, length=(1 << 63) - 1)


@hostile("safetensors", ".safetensors")
def safetensors_header_over_the_cap(folder, sentinel):
    return _safetensors(b"{}" + b" " * (101 << 20))


@hostile("safetensors", ".safetensors")
def safetensors_nested_header(folder, sentinel):
    return _safetensors(b'{"a":' * 200_000 + b"1" + b"}" * 200_000)


@hostile("safetensors", ".safetensors")
def safetensors_overlap(folder, sentinel):
    return _safetensors({KEY: _entry([1, 4], 16), "embed": _entry([1, 4], 16)}, b"\0" * 16)


@hostile("safetensors", ".safetensors")
def safetensors_negative_offset(folder, sentinel):
    return _safetensors({KEY: _entry([1, 4], 8, start=-8)}, b"\0" * 16)


@hostile("safetensors", ".safetensors")
def safetensors_beyond_the_end(folder, sentinel):
    return _safetensors({KEY: _entry([1 << 20, 1 << 20], 4 << 40)}, b"\0" * 16)


@hostile("safetensors", ".safetensors")
def safetensors_shape_that_overflows(folder, sentinel):
    return _safetensors({KEY: _entry([1 << 62, 4], 16)}, b"\0" * 16)


@hostile("safetensors", ".safetensors")
def safetensors_name_twice(folder, sentinel):
    one = json.dumps(_entry([1, 4], 16))
    return _safetensors(f'{{"{KEY}": {one}, "{KEY}": {one}}}'.encode(), b"\0" * 16)


@hostile("safetensors", ".safetensors")
def safetensors_of_unknown_dtype(folder, sentinel):
    return _safetensors({KEY: _entry([1, 4], 16, dtype="__import__('os')")}, b"\0" * 16)


@hostile("vllm", ".safetensors")
def vllm_without_hidden_states(folder, sentinel):
    return _safetensors({"x": _entry([1, 4], 16)}, b"\0" * 16)


# -- Arrow, Parquet, datasets ---------------------------------------------------------------------


@hostile("parquet", ".parquet")
def parquet_cut_short(folder, sentinel):
    import pyarrow as pa
    import pyarrow.parquet as pq

    out = io.BytesIO()
    pq.write_table(pa.table({KEY: [[1.0, 2.0]] * 500}), out)
    return out.getvalue()[:200] + b"PAR1"


@hostile("parquet", ".parquet")
def parquet_of_a_billion_zeros(folder, sentinel):
    import pyarrow as pa
    import pyarrow.parquet as pq

    zeros = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(1 << 26, np.float32)), 1 << 16)
    out = io.BytesIO()
    pq.write_table(pa.table({KEY: zeros.cast(pa.list_(pa.float32()))}), out, compression="zstd")
    return out.getvalue()


@hostile("parquet", ".parquet")
def parquet_of_one_text_many_times(folder, sentinel):
    import pyarrow as pa
    import pyarrow.parquet as pq

    n = 20_000
    ids = pa.DictionaryArray.from_arrays(pa.array(np.zeros(n, np.int32)), ["x" * (1 << 20)])
    rows = [[float(v)] for v in np.random.default_rng(0).standard_normal(n)]
    out = io.BytesIO()
    pq.write_table(pa.table({KEY: rows, "id": ids}), out, compression="zstd")
    return out.getvalue()


@hostile("parquet", ".parquet")
def parquet_of_texts(folder, sentinel):
    import pyarrow as pa
    import pyarrow.parquet as pq

    out = io.BytesIO()
    pq.write_table(pa.table({KEY: ["=cmd|' /C calc'!A0"]}), out)
    return out.getvalue()


def _dataset(folder, table, files=("data-00000-of-00001.arrow",)):
    import pyarrow as pa

    with pa.ipc.new_stream(str(folder / "data-00000-of-00001.arrow"), table.schema) as stream:
        stream.write_table(table)
    (folder / "state.json").write_text(
        json.dumps({"_data_files": [{"filename": name} for name in files]})
    )
    return folder


@hostile("datasets")
def arrow_python_extension_type(folder, sentinel):
    """The metadata that pyarrow once unpickled (CVE-2023-47248)."""
    import pyarrow as pa

    field = pa.field(
        KEY,
        pa.binary(),
        metadata={
            "ARROW:extension:name": "arrow.py_extension_type",
            "ARROW:extension:metadata": pickle.dumps(Calls(os.system, command(sentinel))),
        },
    )
    return _dataset(folder, pa.table([pa.array([b"x"])], schema=pa.schema([field])))


@hostile("datasets")
def arrow_compressed_bomb(folder, sentinel):
    import pyarrow as pa

    zeros = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(1 << 24, np.float32)), 1 << 16)
    table = pa.table({KEY: zeros})
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    name = folder / "data-00000-of-00001.arrow"
    with pa.ipc.new_stream(str(name), table.schema, options=options) as stream:
        stream.write_table(table)
    (folder / "state.json").write_text("{}")
    return folder


@hostile("datasets")
def datasets_state_that_leads_away(folder, sentinel):
    import pyarrow as pa

    _dataset(folder, pa.table({KEY: [[1.0]]}), files=["../../../../etc/passwd"])
    (folder / "data-00000-of-00001.arrow").unlink()
    return folder


@hostile("saelens")
def datasets_link(folder, sentinel):
    import pyarrow as pa

    _dataset(folder, pa.table({KEY: [[1.0]]}))
    inside = folder / "data-00000-of-00001.arrow"
    inside.rename(folder.parent / "elsewhere.arrow")
    inside.symlink_to(folder.parent / "elsewhere.arrow")
    return folder


@hostile("datasets")
def arrow_offsets_beyond_the_values(folder, sentinel):
    import pyarrow as pa

    _dataset(folder, pa.table({KEY: [[0.0] * 12_345]}))
    path = folder / "data-00000-of-00001.arrow"
    right, wrong = struct.pack("<ii", 0, 12_345), struct.pack("<ii", 0, 1 << 30)
    assert right in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(right, wrong))
    return folder


@hostile("datasets")
def arrow_stream_of_noise(folder, sentinel):
    (folder / "data-00000-of-00001.arrow").write_bytes(b"\xff\xff\xff\xff\xff\xff\xff\x7f" * 99)
    (folder / "state.json").write_text("{}")
    return folder


# -- GGUF -----------------------------------------------------------------------------------------


@hostile("gguf", ".gguf")
def gguf_of_billions_of_fields(folder, sentinel):
    return b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 1 << 60) + b"\0" * 64


@hostile("gguf", ".gguf")
def gguf_text_of_exabytes(folder, sentinel):
    return b"GGUF" + struct.pack("<IQQQ", 3, 1, 1, (1 << 63) - 1) + b"x" * 64


@hostile("gguf", ".gguf")
def gguf_of_a_model(folder, sentinel):
    import gguf

    writer = gguf.GGUFWriter(folder / "m.gguf", "llama")
    writer.add_tensor("token_embd.weight", np.zeros((2, 2), "f4"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder / "m.gguf"


@hostile("gguf", ".gguf")
def gguf_cut_short(folder, sentinel):
    return gguf_of_a_model(folder, sentinel).read_bytes()[:60]
