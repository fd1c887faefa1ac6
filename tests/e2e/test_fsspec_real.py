"""pandas, pyarrow, dask and zarr read and write a volume through `fspf://`, and find it again after it was closed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from fspf.cas import open_cas
from fspf.core.errors import IntegrityError
from fspf.fsspec import FspfFileSystem
from fspf.volume.volume import Volume

# Half of them ship types that fit half of what they can do.
dask: Any = import_module("dask")
bags: Any = import_module("dask.bag")
frames: Any = import_module("dask.dataframe")
numpy: Any = import_module("numpy")
pandas: Any = import_module("pandas")
pyarrow: Any = import_module("pyarrow")
dataset: Any = import_module("pyarrow.dataset")
feather: Any = import_module("pyarrow.feather")
zarr: Any = import_module("zarr")

pytestmark = pytest.mark.filterwarnings("default::Warning:dask", "default::Warning:pandas", "default::Warning:zarr")


@pytest.fixture
def url(scratch: Path) -> str:
    return f"sqlite://{scratch}/cas.sqlite"


@pytest.fixture
def path(scratch: Path, url: str) -> Iterator[str]:
    cas = open_cas(url)
    Volume.create(scratch / "volume", cas, commit_interval=None).close()
    cas.close()
    yield str(scratch / "volume")
    release()


def release() -> None:
    """Close what fsspec keeps for later, as the end of the process does."""
    for instance in list(FspfFileSystem._cache.values()):
        instance.close()
    FspfFileSystem.clear_instance_cache()


@pytest.fixture
def options(url: str) -> dict[str, Any]:
    return {"cas": url}


def table() -> Any:
    return pandas.DataFrame(
        {"n": range(5000), "x": [number / 7 for number in range(5000)], "s": [f"grün {n % 10}" for n in range(5000)]}
    )


@pytest.mark.parametrize("kind", ["csv", "parquet", "json", "csv.gz"])
def test_pandas(path: str, options: dict[str, Any], kind: str) -> None:
    name = f"fspf://{path}/in/side.{kind}"
    writers: dict[str, Callable[[Any], Any]] = {
        "csv": lambda t: t.to_csv(name, index=False, storage_options=options),
        "csv.gz": lambda t: t.to_csv(name, index=False, storage_options=options),
        "parquet": lambda t: t.to_parquet(name, storage_options=options),
        "json": lambda t: t.to_json(name, storage_options=options),
    }
    readers: dict[str, Callable[[], Any]] = {
        "csv": lambda: pandas.read_csv(name, storage_options=options),
        "csv.gz": lambda: pandas.read_csv(name, storage_options=options),
        "parquet": lambda: pandas.read_parquet(name, storage_options=options),
        "json": lambda: pandas.read_json(name, storage_options=options),
    }
    writers[kind](table())
    release()
    pandas.testing.assert_frame_equal(readers[kind](), table(), check_dtype=False)


def test_pandas_partitions_and_columns(path: str, options: dict[str, Any]) -> None:
    inside = options | {"volume": path}
    table().to_parquet("fspf:///t", partition_cols=["s"], storage_options=inside)
    release()
    found = pandas.read_parquet("fspf:///t", columns=["n"], filters=[("s", "==", "grün 3")], storage_options=inside)
    assert sorted(found["n"]) == list(range(3, 5000, 10))


def test_pyarrow_dataset(path: str, options: dict[str, Any]) -> None:
    fs = FspfFileSystem(volume=path, **options)
    data = pyarrow.Table.from_pandas(table(), preserve_index=False)
    for behaviour in ("error", "overwrite_or_ignore", "delete_matching"):
        dataset.write_dataset(
            data,
            "/data",
            filesystem=fs,
            format="parquet",
            partitioning=["s"],
            partitioning_flavor="hive",
            max_rows_per_file=100,
            max_rows_per_group=100,
            existing_data_behavior=behaviour,
        )
    release()
    found = dataset.dataset("/data", filesystem=FspfFileSystem(volume=path, **options), partitioning="hive")
    assert len(found.files) == 50
    assert found.count_rows() == 5000
    assert found.to_table(filter=dataset.field("n") < 10).num_rows == 10
    with fs.open("/f.feather", "wb") as file:
        feather.write_feather(data, file)
    with fs.open("/f.feather", "rb") as file:
        assert feather.read_table(file).equals(data)


def test_dask(path: str, options: dict[str, Any]) -> None:
    with dask.config.set(scheduler="threads", num_workers=4):
        frames.from_pandas(table(), npartitions=8).to_parquet(f"fspf://{path}/p", storage_options=options)
        frames.from_pandas(table(), npartitions=8).to_csv(
            f"fspf://{path}/c/*.csv", index=False, storage_options=options
        )
        release()
        for found in (
            frames.read_parquet(f"fspf://{path}/p", storage_options=options),
            frames.read_csv(f"fspf://{path}/c/*.csv", blocksize=10_000, storage_options=options),
        ):
            assert found["n"].sum().compute() == sum(range(5000))
            assert len(found.groupby("s").size().compute()) == 10
        assert bags.read_text(f"fspf://{path}/c/*.csv", storage_options=options).count().compute() == 5008
    release()


def test_zarr(path: str, options: dict[str, Any]) -> None:
    name = f"fspf://{path}/array.zarr"
    data = numpy.arange(200 * 300, dtype="i4").reshape(200, 300)
    array = zarr.open(name, mode="w", shape=data.shape, chunks=(64, 64), dtype="i4", storage_options=options)
    array[:] = data
    release()
    found = zarr.open(name, mode="r+", storage_options=options)
    assert (found[:] == data).all()
    found[10:20, 5] = 7
    release()
    found = zarr.open(name, mode="r", storage_options=options)
    data[10:20, 5] = 7
    assert (found[:] == data).all()
    group = zarr.open_group(f"fspf://{path}/group.zarr", mode="w", storage_options=options)
    group.create_array("a/b", shape=(10,), dtype="f8")[:] = 1.5
    release()
    group = zarr.open_group(f"fspf://{path}/group.zarr", mode="r", storage_options=options)
    assert group["a/b"][:].sum() == 15
    assert [key for key, _ in group.members(max_depth=None)] == ["a", "a/b"]


def test_what_was_altered_is_refused_and_not_read(path: str, options: dict[str, Any], scratch: Path) -> None:
    table().to_csv(f"fspf://{path}/t.csv", storage_options=options)
    release()
    for segment in (scratch / "volume" / "segments").iterdir():
        with open(segment, "r+b") as file:
            for offset in range(0, segment.stat().st_size, 4096):
                file.seek(offset)
                block = file.read(16)
                if block.strip(b"\0"):
                    file.seek(offset)
                    file.write(bytes(byte ^ 1 for byte in block))
    with pytest.raises(IntegrityError):
        pandas.read_csv(f"fspf://{path}/t.csv", storage_options=options)
