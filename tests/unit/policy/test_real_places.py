"""Where real phones and a real car have been, under the shipped packs: no stored cell is a precise location.

Phones in Aracaju under ``br`` and a car in California under ``us-ca``, read with the shipped mappings and
taken through the plan alone (with a broker and a store: ``tests/kafka/test_real_data.py``).
"""

from __future__ import annotations

import struct

import h3ronpy
import numpy as np
import pyarrow as pa
import pytest

from connectors.replay import replay
from pipeline.mapping import find_mapping
from pipeline.policy import compile_plan, load_packs
from tests.shared_data import PROJECT, shared_data
from tests.unit.policy.cases import EVENTS, NOW_US, POLICIES, Keys
from tests.unit.policy.test_operator_properties import PRECISE_KM2, as_bytes, true_areas_km2

EVENT = EVENTS["vehicle_telemetry"]
ENVELOPE = {"spool": 1, "lane": 0, "sequence": 1}
GNSS = ("latitude", "longitude", "speed", "utc_timestamp", "altitude", "bearing")


def phones(tmp_path):
    return shared_data("go_track", "go_track_trackspoints.csv"), "go_track"


def car(receiver):
    def written(tmp_path):
        values = np.load(shared_data("comma2k19", "processed_log", "GNSS", f"live_gnss_{receiver}", "value"))
        path = tmp_path / "gnss.csv"
        np.savetxt(path, values, "%.17g", ",", header=",".join(GNSS), comments="")
        return path, "comma2k19_gnss"

    return written


@pytest.fixture(scope="module")
def packs():
    return load_packs(POLICIES, EVENTS)


def raw(path, mapping):
    """The recording as checked raw events: what an edge would add is added, what it does not know is null."""
    read = pa.Table.from_batches(replay(path, EVENT, None, find_mapping(mapping, PROJECT / "schemas")))

    def column(name, kind):
        if name in read.column_names:
            return read.column(name).combine_chunks().cast(kind)
        if name == "received_time":
            return read.column("event_time").combine_chunks().cast(kind)
        return pa.repeat(pa.scalar(ENVELOPE.get(name), kind), len(read))

    return pa.RecordBatch.from_arrays([column(f.name, f.type) for f in EVENT.arrow], schema=EVENT.arrow)


@pytest.mark.parametrize(
    ("region", "recording", "rows", "cells_max"),
    [("br", phones, 18_107, 1_000), ("us-ca", car("ublox"), 500, 3), ("us-ca", car("qcom"), 20, 3)],
    ids=["phones in br", "car in us-ca, 10 Hz", "car in us-ca, 0.5 Hz"],
)
def test_no_cell_is_a_precise_location_and_no_coordinate_leaves(
    packs, region, recording, rows, cells_max, tmp_path
):
    batch = raw(*recording(tmp_path))
    assert len(batch) >= rows
    plan = compile_plan(packs.terms(region, region), EVENT, Keys(), now_us=NOW_US)
    curated = plan.transform(batch)
    assert len(curated) == len(batch)
    assert not {"latitude", "longitude"} & set(curated.schema.names)

    cells = curated.column("location_cell")
    assert cells.null_count == 0
    assert len(cells.unique()) <= cells_max
    assert np.asarray(h3ronpy.cells_area_km2(cells.cast(pa.uint64()))).min() >= PRECISE_KM2
    assert true_areas_km2(cells).min() >= PRECISE_KM2

    before, after = as_bytes(batch), as_bytes(curated)
    coordinates = {value for name in ("latitude", "longitude") for value in batch.column(name).to_pylist()}
    packed = [struct.pack("<d", value) for value in coordinates]
    assert all(value in before for value in packed[:100]), "the search finds them where they are"
    # One pass over the result for all of them: every run of eight bytes in it, against the set of them.
    windows = np.lib.stride_tricks.sliding_window_view(np.frombuffer(after, np.uint8), 8)
    runs = np.ascontiguousarray(windows).view("<u8").ravel()
    assert not np.isin(runs, np.frombuffer(b"".join(packed), "<u8")).any()
    texts = {f"{value:.4f}"[:-1].encode() for value in coordinates}  # to three decimals
    assert not any(text in after for text in texts)

    truncated = curated.column("event_time").cast(pa.int64()).to_numpy()
    unit_us = {"br": 3_600_000_000, "us-ca": 60_000_000}[region]
    assert (truncated % unit_us == 0).all()
    sources = {*batch.column("source").to_pylist(), *batch.column("vin").to_pylist()} - {None}
    assert not any(source.encode() in after for source in sources)


def test_the_search_would_see_a_coordinate_that_stayed(packs, tmp_path):
    """The test above is worth nothing where it cannot fail."""
    batch = raw(*phones(tmp_path)).slice(0, 10)
    column = np.frombuffer(as_bytes(batch.select(["latitude"])), np.uint8)
    runs = np.ascontiguousarray(np.lib.stride_tricks.sliding_window_view(column, 8)).view("<u8").ravel()
    packed = struct.pack("<d", batch.column("latitude")[3].as_py())
    assert np.isin(runs, np.frombuffer(packed, "<u8")).any()
