"""A store writer as a process of its own, to be killed: ``store_process.py PATH WORLD_SEED SEED SYNCS``.

Writes the world of WORLD_SEED into the store at PATH until all is stored; kills itself at sync number SYNCS
(0: never), which is between the INSERTs and the COMMIT of some transaction.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

from connectors.lake import Lake, LakeOptions
from pipeline.config import FlushConfig
from pipeline.store import Inflow, StorePlan, StorePorts, StoreWriter
from tests.store_world import EVENTS, REGION, TOPICS, FakeCluster, FakeReader, World


def killing_at(count: int):
    """An fsync that ends this process at its ``count``-th call, before or after syncing."""
    left = [count]

    def fsync(descriptor: int) -> None:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        os.fsync(descriptor)

    return fsync


async def main(path: Path, world_seed: int, seed: int, syncs: int) -> None:
    world = World(world_seed)
    lake = Lake(path, REGION, LakeOptions(fsync=killing_at(syncs)))
    reader = FakeReader(world, seed, piece=120)
    inflow = Inflow(TOPICS.landing(REGION), EVENTS)
    plan = StorePlan((inflow,), lambda schema_id: None, FlushConfig(age_s=0.05, rows=400))
    stop = asyncio.Event()
    run = asyncio.create_task(
        StoreWriter(StorePorts(lake, reader, FakeCluster(world)), world.schemas, plan).run(stop)
    )
    print("started", flush=True)
    while not run.done() and not (reader.positions and reader.at_end()):  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    stop.set()
    await run
    lake.close()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), *map(int, sys.argv[2:5])))
