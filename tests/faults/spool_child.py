"""A process that keeps a spool busy until it is killed, or until its disk refuses. Run by test_spool_kill.

``produce SPOOL LOG SEED CAP``: four threads emit, one forwards into LOG; each receipt becomes a line on
stdout. The spool holds at most CAP bytes: the lane ``bulk`` sheds, the others refuse.
``refuse SPOOL SEED``: the disk refuses beyond a size that moves; prints what became of each emit.
"""

from __future__ import annotations

import os
import random
import resource
import sys
import threading
from pathlib import Path

from pipeline.edge.committer import Spool
from pipeline.edge.ledger import Settlement
from pipeline.errors import TransientError
from tests.edge_world import PlainEncoder, open_spool, put


def make_rows(rng: random.Random, count: int) -> list[bytes]:
    """Rows that no other call makes."""
    return [b"%d token %d " % (rng.randrange(4), rng.getrandbits(60)) for _ in range(count)]


def produce(spool: Spool, log: Path, seed: int) -> None:
    """Until killed."""
    encoder, tell = PlainEncoder(), threading.Lock()

    def emit(number: int) -> None:
        rng = random.Random(f"{seed} {number}")
        while True:
            rows = make_rows(rng, rng.choice([1, 3, 200]))
            try:
                receipt = put(spool, encoder, rows, lane=rng.randrange(3)).result(60)
            except TransientError:  # the lane is full: so be it
                continue
            with tell:
                tokens = " ".join(row.split()[2].decode() for row in rows)
                os.write(1, f"{receipt.lane} {receipt.first_sequence} {tokens}\n".encode())

    for number in range(4):
        threading.Thread(target=emit, args=(number,), daemon=True).start()
    rng = random.Random(seed)
    with log.open("ab", buffering=0) as out:
        out.write(b"\n")  # the last line of a killed process may be cut
        while True:
            lane = rng.randrange(3)
            blocks = spool.read("eu", lane, 20_000).result(60)
            if not blocks:
                continue
            for block in blocks:
                out.write(b"".join(b"%d|%s|.\n" % (block.partition, row) for row in block.values.to_pylist()))
            spool.settle(Settlement("eu", lane, blocks[-1].identity)).result(60)


def refuse(spool: Spool, seed: int) -> None:
    """Forty emits while the largest file that may be written changes at random."""
    rng, encoder = random.Random(seed), PlainEncoder()
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for number in range(40):
        limit = rng.choice([60_000, 150_000, 400_000, hard])
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        rows = make_rows(rng, rng.choice([1, 40, 3000]))
        try:
            receipt = put(spool, encoder, rows).result(60)
        except TransientError as error:
            outcome = "unknown" if "unknown" in str(error) else "refused"
            print(number, outcome, rows[0].split()[2].decode(), len(rows), flush=True)
        else:
            print(number, "taken", receipt.first_sequence, rows[0].split()[2].decode(), len(rows), flush=True)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    receipt = put(spool, encoder, [b"0 token 1 "]).result(60)
    print(40, "taken", receipt.first_sequence, 1, 1, flush=True)


if __name__ == "__main__":
    what, path, *rest = sys.argv[1:]
    cap = {"spool_bytes_max": int(rest[2])} if what == "produce" else {}
    opened = open_spool(Path(path), **cap)
    if what == "produce":
        produce(opened, Path(rest[0]), int(rest[1]))
    else:
        refuse(opened, int(rest[0]))
        opened.close()
