"""The balance of a region, to the row: is every accepted event somewhere, and in the store once?

Comes in: the spools' ledgers, the store's totals, the topics' ends. Goes out: a :class:`BalanceReport`. Pure.

**P1, nothing lost.** ``accepted + foreign = stored + filtered + quarantined + evicted + pending``; pending is
in a spool, in the raw topic, or passed and not stored yet. Per raw partition the store knows ``accounted``:
below it every position has one fate. So, over all partitions of the region::

    arrived  = passed + filtered + quarantined − foreign (repeats are the same events again)
    in_kafka = end of the raw topic − accounted         (events and perhaps repeats, not accounted for yet)
    lost     = forwarded − arrived − in_kafka           when that is above 0

Read in the order ledgers, store, ends. What a ledger calls forwarded was acknowledged before it was read, so
it lies below the ends read later; and the store's account is a part of that log. Everything can move
meanwhile, but only such that arrived + in_kafka grows: a positive difference is a loss even while the
pipeline runs.

**Nothing too much** needs the ledgers once more, *after* the store: an event must be accepted before it is
stored, so ``arrived − accepted`` above 0 is a surplus: doubled events. Records that no spool sent (another
producer's, or bytes that are no event) are no ledger's; the account counts them apart, and they are not in
``arrived`` here. An event that was evicted while its acknowledgement was on the way counts as evicted and
arrived: a surplus of up to ``evicted`` is explained by that.

**P2, once.** Of one snapshot of the store: rows below ``accounted`` against ``passed``, per partition, and
all rows against the sum of what the commits say they added. More rows than passed are doubled rows, always.
Fewer are on their way (a fate is recorded before the row is delivered) and lost only if that stays so:
``settled``.

**Over a border** the same is asked of what the origins let through. For each (origin, event) with a leg into
the region, over its partitions; "accounted" is a position in the origin's curated topic here, and distinct
events are counted by the raw position they carry::

    arrived  = passed + filtered + quarantined     at the border (repeats are the same events again)
    in_kafka = end of the origin's curated topic − accounted
    lost     = rows in the origin's store − arrived − in_kafka     when that is above 0

Read in the order origins' stores, own store, ends, origins' stores again. A row in the origin's store was
read from its curated topic before, so its record lies below the end that is read later: it is accounted for,
and then one of the arrived, or it is among in_kafka. A positive difference is a loss, also while all moves.

**Nothing too much**: ``arrived − passed at the origin``, read after. A fate is written at the origin before
the row is delivered, and delivered before it can cross; so once the origin's store has read its stats up to
their end (read after our own store), the difference is events that crossed and never passed. Before that it
is open. Records that could not be read may be repeats of ones that could: up to that many are explained.

**P2, once.** Rows of (event, origin, raw partition) against their distinct raw offsets, and against what
passed at the border: more of them, where our store has read all of the leg's stats, are doubled.
"""

from pipeline.balance.border import BorderEvidence, LegEvidence, border_balance
from pipeline.balance.landing import Evidence, Ledger, Ledgers, balance
from pipeline.balance.report import (
    BALANCED,
    OFF,
    OPEN,
    AccountTotals,
    BalanceReport,
    RowTotals,
    StoreTotals,
)

__all__ = [
    "BALANCED",
    "OFF",
    "OPEN",
    "AccountTotals",
    "BalanceReport",
    "BorderEvidence",
    "Evidence",
    "Ledger",
    "Ledgers",
    "LegEvidence",
    "RowTotals",
    "StoreTotals",
    "balance",
    "border_balance",
]
