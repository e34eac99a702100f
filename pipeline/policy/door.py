"""The type check's pair at the door of a store: what comes in is looked at again, by what it says it is.

Comes in: the pack of the region that owns the store, and a curated schema. Raises unless every column's tags
are among those the region may hold. It shares no code with the plan that made the rows but the tags.
"""

from __future__ import annotations

from pipeline.errors import ConfigError
from pipeline.events import LockedSchema
from pipeline.policy.derive import curated_subject
from pipeline.policy.pack import Pack
from pipeline.policy.tags import uncovered


def demand_landable(pack: Pack, locked: LockedSchema) -> None:
    """Raise ConfigError when rows of this schema may not be stored in the pack's region."""
    event = locked.subject.rpartition(".")[2]
    if locked.subject != curated_subject(pack.region, event):
        raise _refused(pack, locked, "it was made for another place")
    allowed = pack.leg(pack.region, pack.region).allowed_for(event)
    for field in locked.schema["fields"]:
        tags = frozenset(field.get("confluent:tags", ()))
        over = uncovered(tags, allowed)
        if not tags or over:
            raise _refused(pack, locked, f"{field['name']} is {', '.join(sorted(over)) or 'untagged'}")


def _refused(pack: Pack, locked: LockedSchema, problem: str) -> ConfigError:
    return ConfigError(
        f"{problem}, which {pack.region} may not hold",
        operation="store door",
        place=f"{locked.subject} version {locked.version}",
        remedy="stop the processor that wrote it; nothing of it was stored",
    )
