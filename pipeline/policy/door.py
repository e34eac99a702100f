"""The type check's pair at the door of a store: what comes in is looked at again, by what it says it is.

Comes in: the packs, the region that owns the store, and a curated schema. Raises unless some leg into the
region permits the event and every column's tags are among those it allows. It shares no code with the plan
that made the rows but the terms.
"""

from __future__ import annotations

from pipeline.errors import ConfigError
from pipeline.events import LockedSchema
from pipeline.policy.packs import Packs
from pipeline.policy.tags import uncovered


def demand_landable(packs: Packs, region: str, locked: LockedSchema) -> None:
    """Raise ConfigError when rows of this schema may not be stored in the region.

    Rows that crossed while the basis held may be stored after it ended: validity is the border's question.
    """
    event, origin = _parts(region, locked)
    try:
        terms = packs.terms(origin, region)
    except ConfigError as error:
        raise _refused(region, locked, error.problem) from None
    if not terms.permits(event):
        raise _refused(region, locked, f"{event} may not cross from {origin}")
    allowed = terms.allowed_for(event)
    for field in locked.schema["fields"]:
        tags = frozenset(field.get("confluent:tags", ()))
        over = uncovered(tags, allowed)
        if not tags or over:
            raise _refused(region, locked, f"{field['name']} is {', '.join(sorted(over)) or 'untagged'}")


def _parts(region: str, locked: LockedSchema) -> tuple[str, str]:
    """Event and origin of a curated subject: ``<region>.curated.<event>[.<origin>]``."""
    place, _, rest = locked.subject.partition(".curated.")
    event, _, origin = rest.partition(".")
    if place != region or not event or origin == region:
        raise _refused(region, locked, "it was made for another place")
    return event, origin or region


def _refused(region: str, locked: LockedSchema, problem: str) -> ConfigError:
    return ConfigError(
        f"{problem}, which {region} may not hold",
        operation="store door",
        place=f"{locked.subject} version {locked.version}",
        remedy="stop the processor that wrote it; nothing of it was stored",
    )
