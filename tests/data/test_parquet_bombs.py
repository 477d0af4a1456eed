"""Parquet files of a few kilobytes that stand for gigabytes, or for code."""

import pickle
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from image_bytes import png

from neural_polarizer.data import labels, parquet, parquet_pages
from neural_polarizer.data.sources import read_images
from neural_polarizer.errors import BadInputError


def written(path: Path, images: Any, **options: Any) -> Path:
    """A small file of plain bytes or structs, with labels of zero."""
    table = pa.table({"image": images, "label": [0] * len(images)})
    pq.write_table(table, path, store_schema=False, **options)
    return path


def refused(path: Path, reason: str) -> None:
    with pytest.raises(BadInputError, match=reason) as caught:
        read_images(str(path))
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500


def struct_of(data: bytes, path: str) -> pa.Array:
    return pa.array([{"bytes": data, "path": path}], pa.struct([("bytes", pa.binary()), ("path", pa.string())]))


def test_a_page_that_unpacks_to_far_more_than_images_do_is_refused(tmp_path: Path) -> None:
    for name, cells in {"plain": pa.array([bytes(20 << 20)]), "struct": struct_of(bytes(20 << 20), "a.png")}.items():
        path = written(tmp_path / f"{name}.parquet", cells, compression="zstd")
        assert path.stat().st_size < 10_000
        refused(path, r"column 'image(\.bytes)?' unpacks [\d,]+ bytes to 20,971,\d+, which images do not")


def test_a_few_rows_of_the_bytes_alone_are_in_memory_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "_BATCH_BYTES", 10 * len(png()))
    cells = pa.array([{"bytes": png(), "path": "a" * 1000}] * 40, struct_of(b"", "").type)
    path = written(tmp_path / "a.parquet", cells, use_dictionary=["image.bytes"])
    asked = []
    iter_batches = pq.ParquetFile.iter_batches

    def watched(self: pq.ParquetFile, batch_size: int, **options: Any) -> Any:
        asked.append((batch_size, options["columns"]))
        return iter_batches(self, batch_size, **options)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", watched)
    assert len(read_images(str(path))) == 40
    ((rows, columns),) = asked
    assert 1 <= rows <= 10
    assert columns == ["image.bytes"]


def test_more_rows_than_anyone_has_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "a.parquet", [png()] * 4)
    monkeypatch.setattr(parquet, "MAX_ROWS", 3)
    refused(path, "holds more than 3 rows")


def test_metadata_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "MAX_METADATA_BYTES", 100)
    table = pa.table({"image": [png()], "label": [0]}).replace_schema_metadata({"huggingface": " " * 101 + "{}"})
    pq.write_table(table, tmp_path / "a.parquet")
    refused(tmp_path / "a.parquet", "its Hugging Face metadata is larger than 100 bytes")


def test_thousands_of_columns_are_not_all_listed(tmp_path: Path) -> None:
    names = [f"c{number}" for number in range(2000)]
    pq.write_table(pa.table({name: [0] for name in names}), tmp_path / "a.parquet")
    refused(tmp_path / "a.parquet", r"needs one column image or img or jpg or png; found \['c0', .*'c9'\]$")
    pq.write_table(pa.table({"image": [png()], **{name: [0] for name in names}}), tmp_path / "a.parquet")
    refused(tmp_path / "a.parquet", r"needs one column label or .*; found \['image', 'c0', .*'c8'\]$")


def test_a_footer_or_a_page_header_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "a.parquet", [png()] * 4)
    for name, value in {"_MAX_VALUES": 20, "_MAX_FOOTER": 20, "_MAX_HEADER": 3, "_MAX_DEPTH": 2}.items():
        with monkeypatch.context() as patch:
            patch.setattr(parquet_pages, name, value)
            refused(path, "column 'label' is damaged; get the file again")
    assert len(read_images(str(path))) == 4


def test_many_small_pages_cost_what_they_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page of some bytes can stand 80,000 times in a file of 10 MB; a megabyte for each took a minute."""
    read = []

    class Counting(parquet_pages._Thrift):
        def __init__(self, data: bytes) -> None:
            read.append(len(data))
            super().__init__(data)

    monkeypatch.setattr(parquet_pages, "_Thrift", Counting)
    options = {"use_dictionary": False, "data_page_size": 1, "write_batch_size": 1, "compression": "none"}
    path = written(tmp_path / "a.parquet", [b"%d" % number for number in range(500)], **options)
    refused(path, "row 0")
    assert len(read) > 500
    assert sum(read) < 20 * path.stat().st_size


def test_a_page_header_longer_than_usual_is_read_whole(tmp_path: Path) -> None:
    long = bytes(range(256)) * 10  # twice in the statistics of its page
    path = written(tmp_path / "a.parquet", [long], write_page_index=False)
    with pq.ParquetFile(path) as file:
        assert parquet_pages.largest_page(path, file, "image") >= len(long)


def test_a_footer_that_names_one_piece_again_and_again_is_refused(tmp_path: Path) -> None:
    """A few bytes for each row group would have the same megabytes read once more."""
    path = written(tmp_path / "a.parquet", [png() + bytes(5000), *[png()] * 11], row_group_size=1, compression="none")
    data = path.read_bytes()
    footer = data[-8 - int.from_bytes(data[-8:-4], "little") : -8]
    groups = row_groups(footer)
    again = footer.replace(b"".join(groups), groups[0] * len(groups))
    path.write_bytes(data[: -8 - len(footer)] + again + len(again).to_bytes(4, "little") + data[-4:])
    assert pq.ParquetFile(path).num_row_groups == len(groups) == 12
    refused(path, "column 'image' is damaged")


def row_groups(footer: bytes) -> list[bytes]:
    """The bytes of each, by a look at the fourth field of the footer."""
    thrift, field = parquet_pages._Thrift(footer), 0
    while True:
        head = thrift._byte()
        field += head >> 4
        if field == 4:
            break
        thrift._value(head & 15, 0)
    starts = [thrift.at + 1]
    for _ in range(thrift._byte() >> 4):
        thrift.struct()
        starts.append(thrift.at)
    return [footer[start:end] for start, end in pairwise(starts)]


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("codec", ["none", "snappy", "gzip", "zstd", "lz4", "brotli"])
def test_honest_pages_of_every_kind_are_measured(tmp_path: Path, codec: str, version: str) -> None:
    options = {"compression": codec, "data_page_version": version, "row_group_size": 7, "data_page_size": 64}
    path = written(tmp_path / "a.parquet", [png((n, 0, 0)) for n in range(40)], **options)
    assert read_images(str(path)).images[:, 0, 0, 0].tolist() == list(range(40))


class Canary:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_a_pickled_extension_type_is_not_run(tmp_path: Path) -> None:
    # how pyarrow before 14.0.1 could be made to run code (CVE-2023-47248)
    canary = tmp_path / "canary"
    code = pickle.dumps(Canary(canary))
    metadata = {"ARROW:extension:name": "arrow.py_extension_type", "ARROW:extension:metadata": code}
    schema = pa.schema([pa.field("image", pa.binary(), metadata=metadata), pa.field("label", pa.int64())])
    pq.write_table(pa.table({"image": [png()], "label": [0]}, schema=schema), tmp_path / "a.parquet")
    assert len(read_images(str(tmp_path / "a.parquet"))) == 1
    assert not canary.exists()
    pickle.loads(code)
    assert canary.exists()


def test_labels_that_are_no_names_but_a_flood_of_text_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, rows = tmp_path / "a.parquet", [png()] * 4
    pq.write_table(pa.table({"image": rows, "label": ["a", "b", "c", "x" * 1001]}), path)
    refused(path, "texts of up to 1,001 letters, too long for class names")
    monkeypatch.setattr(labels, "_MAX_TOGETHER", 99)
    pq.write_table(
        pa.table({"image": rows, "label": ["a", "b", "c", "x" * 25]}), path
    )  # each takes as much as the last
    refused(path, "texts of up to 25 letters, too long for class names")
    pq.write_table(pa.table({"image": rows[:2], "label": ["a", "x" * 25]}), path)
    pq.write_table(pa.table({"image": rows, "label": ["a", "b", "c", "d"]}), tmp_path / "b.parquet")
    refused(tmp_path, "texts of up to 25 letters, too long for class names")  # together
    pq.write_table(pa.table({"image": rows, "label": ["a", "b", "c", "d"]}), path)
    monkeypatch.setattr(parquet, "_MAX_TEXTS", 3)
    refused(path, "too many different texts, or too long ones")


def test_a_group_that_claims_more_rows_than_the_file_has_is_refused_before_memory_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    table = pa.table({"image": [png()] * 3, "label": [0, 1, 2]})
    pq.write_table(table, path)
    group = pq.ParquetFile(path).metadata.row_group(0)
    told, more = b"\x16" + _varint(2 * group.total_byte_size) + b"\x16", 2 * 1_743_397_895_425
    data = path.read_bytes()
    assert data.count(told + _varint(2 * 3)) == 1
    bad = data.replace(told + _varint(2 * 3), told + _varint(more))
    length = int.from_bytes(data[-8:-4], "little") + len(bad) - len(data)
    path.write_bytes(bad[:-8] + length.to_bytes(4, "little") + bad[-4:])
    with pytest.raises(BadInputError, match=r"column '(image|label)' is damaged"):
        read_images(str(path))


def _varint(value: int) -> bytes:
    found = bytearray()
    while value >= 0x80:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*found, value))
