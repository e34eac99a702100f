"""What a person says about a purpose, put where the processors of its region see it, and read back.

Comes in: a project, region, purpose and subject. Goes out: a record on the region's ``consent`` topic,
durable when the call returns: no event that is processed after that disregards it. The subject's own name
goes no further than the keyed hash that is made of it here.
"""

from __future__ import annotations

from connectors.kafka import KafkaAdmin, KafkaReader, KafkaWriter
from pipeline.errors import ConfigError
from pipeline.policy.consent import Choice, ConsentBook
from pipeline.processor import ConsentFeed, choice_record
from pipeline.service import Project, started


async def say(project: Project, region: str, purpose: str, subject: str, choice: Choice | None) -> None:
    """Record the choice; None forgets it. Raises ConfigError (no such purpose, no key), TransientError."""
    _demand_purpose(project, region, purpose)
    (name,) = project.consent_names(region).of(purpose, [subject])
    values, keys = choice_record(project.schemas, purpose, name, choice)
    cluster = project.cluster(region)
    async with started(KafkaAdmin(cluster)) as admin:
        await admin.ensure_topics(project.topic_specs(region))
    async with started(KafkaWriter(cluster)) as writer:
        await writer.send(project.topics.consent(region), 0, values, keys=keys)


async def said(project: Project, region: str, purpose: str, subject: str) -> Choice | None:
    """The last word, None when there is none. Raises as :func:`say`."""
    _demand_purpose(project, region, purpose)
    names = project.consent_names(region)
    book = await read_book(project, region)
    return book.choice(purpose, names.of(purpose, [subject])[0])


async def read_book(project: Project, region: str) -> ConsentBook:
    """Everything that people of the region have said until now."""
    book = ConsentBook(project.consent_names(region))
    async with started(KafkaReader(project.cluster(region), None, project.config.limits)) as reader:
        await ConsentFeed(reader, project.topics.consent(region), project.schemas, book).catch_up()
    return book


def _demand_purpose(project: Project, region: str, purpose: str) -> None:
    purposes = project.packs.pack(region).purposes
    if purpose not in purposes:
        raise ConfigError(
            f"no purpose {purpose!r}; the pack of {region} has {', '.join(sorted(purposes))}",
            operation="consent",
        )
