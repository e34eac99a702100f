"""One seed of the campaign: events flow from edge to store while a schedule kills what carries them."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from connectors.kafka import KafkaWriter
from pipeline.errors import ConfigError, TransientError
from pipeline.service import started
from tests.faults.flow import foreign_records
from tests.faults.schedule import BORDER, BROKER, CORE_STORE, EDGE, FOREIGN, PROCESSOR, STORE, ZOMBIE, Fault
from tests.faults.verdict import weigh_now
from tests.whole_way import CORE, POLL_S, REGION, Child, Way, until

AUDIT_EVERY_S = 4.0
RETRY_PAUSE_S = 0.5
FLOW_LIMIT_S = 600.0
EXCUSES = ("connect to Kafka", "not acknowledged within", "no answer")  # how an outage ends a process


@dataclass
class Campaign:
    """Runs the flow and the faults; afterwards everything runs and all is accepted and sent."""

    way: Way
    seed: int
    events: int
    flow_s: float
    faults: list[Fault]
    outages: list[tuple[float, float]] = field(default_factory=list)  # of the broker: from, until
    foreign_cycles: int = 0
    audits: int = 0

    def __post_init__(self) -> None:
        numbers = {"--events": self.events, "--seconds": self.flow_s, "--seed": self.seed}
        self.edge = self.way.producer([text for pair in numbers.items() for text in map(str, pair)])
        self.processors = [self.way.role("process", "-a"), self.way.role("process", "-b")]
        self.store = self.way.role("store")
        self.border = self.way.role("border", region=CORE)
        self.core_store = self.way.role("store", "-core", region=CORE)
        self.active = self.processors[0]  # the one that runs when only one does
        self.meant_to_run: set[str] = set()
        self.waiting: set[str] = set()  # ended for want of a broker, to be started when it is back
        self.begun = time.monotonic()

    async def run(self) -> None:
        """The whole flow. Fails when a process ends by itself for no reason, or a balance is off."""
        for child in (self.processors[0], self.store, self.border, self.core_store, self.edge):
            self.start(child)
        lines: dict[str, list[Fault]] = {}
        for fault in self.faults:
            lines.setdefault(fault.line, []).append(fault)
        async with asyncio.TaskGroup() as group:
            watches = [group.create_task(self._watch()), group.create_task(self._audit())]
            work = [group.create_task(self._line(faults)) for faults in lines.values()]
            await asyncio.gather(*work)
            await until(lambda: self.way.all_sent(self.events), "all events accepted and sent", FLOW_LIMIT_S)
            self.say("all accepted and sent")
            for watch in watches:
                watch.cancel()

    # --- the children ------------------------------------------------------------------------------------

    def start(self, child: Child) -> None:
        """Start it and expect it to run from now on."""
        self.waiting.discard(child.name)
        self.meant_to_run.add(child.name)
        child.start()

    def kill(self, child: Child) -> None:
        """kill -9."""
        self.waiting.discard(child.name)
        self.meant_to_run.discard(child.name)
        child.kill9()

    def say(self, text: str) -> None:
        """One line of what happens, with the seconds since the beginning."""
        print(f"{time.monotonic() - self.begun:6.1f} s  {text}", flush=True)

    async def _watch(self) -> None:
        """A process may end by itself only for want of a broker; it is started when that is back."""
        while True:
            for child in self.way.children:
                if child.name in self.meant_to_run and not child.running:
                    assert child.process is not None
                    status = child.process.returncode
                    self.say(f"{child.name} ended by itself with status {status}")
                    excused = child is not self.edge and status == 1 and self._met_an_outage(child)
                    assert excused, f"{child.name} ended with {status}:\n{child.last_lines()}"
                    self.kill(child)
                    self.waiting.add(child.name)
            if self._broker_is_there():
                for child in self.way.children:
                    if child.name in self.waiting and child.process is None:
                        self.start(child)
            await asyncio.sleep(POLL_S)

    def _broker_is_there(self) -> bool:
        return all(end < float("inf") for _, end in self.outages)

    def _met_an_outage(self, child: Child) -> bool:
        last_line = child.last_lines().rpartition("\n")[2]
        outage = any(end > child.started_at for _, end in self.outages)
        return outage and any(excuse in last_line for excuse in EXCUSES)

    async def _audit(self) -> None:
        """A loss shows at any moment, not only at rest."""
        while True:
            await asyncio.sleep(AUDIT_EVERY_S)
            try:
                findings = await asyncio.to_thread(asyncio.run, weigh_now(self.way))
            except (TransientError, ConfigError):  # broker away; no store yet
                continue
            assert not findings, f"off while it ran: {findings}"
            self.audits += 1

    # --- the faults --------------------------------------------------------------------------------------

    async def _line(self, faults: list[Fault]) -> None:
        acts: dict[str, Callable[[Fault], Awaitable[None]]] = {
            EDGE: self._edge, BROKER: self._broker, PROCESSOR: self._processor,
            STORE: self._store, ZOMBIE: self._zombie, FOREIGN: self._foreign,
            BORDER: self._border, CORE_STORE: self._core_store,
        }  # fmt: skip
        for fault in faults:
            due = fault.at * self.events
            await until(lambda: self.way.accepted() >= due, f"{due:.0f} events accepted", FLOW_LIMIT_S)  # noqa: B023
            self.say(f"{fault.kind} ({fault.at:.1%}, {fault.pause_s:.2f} s)")
            await acts[fault.kind](fault)

    async def _kill(self, child: Child, pause_s: float) -> None:
        self.kill(child)
        await asyncio.sleep(pause_s)
        self.start(child)

    async def _edge(self, fault: Fault) -> None:
        await self._kill(self.edge, fault.pause_s)
        before = self.way.accepted()
        await until(
            lambda: self.way.accepted() > before or before == self.events, "the edge takes events again"
        )

    async def _store(self, fault: Fault) -> None:
        await self._kill(self.store, fault.pause_s)
        await until(lambda: self.store.works, "the store writer works again", FLOW_LIMIT_S)

    async def _border(self, fault: Fault) -> None:
        await self._kill(self.border, fault.pause_s)
        await until(lambda: self.border.works, "the border works again", FLOW_LIMIT_S)

    async def _core_store(self, fault: Fault) -> None:
        await self._kill(self.core_store, fault.pause_s)
        await until(lambda: self.core_store.works, "the core's store writer works again", FLOW_LIMIT_S)

    async def _processor(self, fault: Fault) -> None:
        await self._kill(self.active, fault.pause_s)
        await until(lambda: self.active.works, "the processor works again", FLOW_LIMIT_S)

    async def _broker(self, fault: Fault) -> None:
        broker, loop = self.way.broker, asyncio.get_running_loop()
        assert broker is not None
        begun = time.monotonic()
        self.outages.append((begun, float("inf")))
        await loop.run_in_executor(self.way.broker_thread, broker.kill9)
        await asyncio.sleep(fault.pause_s)
        await loop.run_in_executor(self.way.broker_thread, broker.start)
        self.outages[-1] = (begun, time.monotonic())
        self.say("the broker is back")

    async def _zombie(self, fault: Fault) -> None:
        """Halt the processor until another one has all its partitions, then let both go on."""
        halted = self.active
        other = next(child for child in self.processors if child is not halted)
        halted.halt()
        self.start(other)
        await until(lambda: other.works, "the other processor has taken over", FLOW_LIMIT_S)
        await asyncio.sleep(fault.pause_s)
        self.say(f"{halted.name} goes on")
        if halted.process is not None:
            halted.go_on()
        await asyncio.sleep(2 * fault.pause_s)
        self.active, gone = (other, halted) if fault.luck < 0.5 else (halted, other)
        self.kill(gone)
        self.say(f"{self.active.name} stays")

    async def _foreign(self, fault: Fault) -> None:
        """Records of a producer that knows neither spool nor frames."""
        chance, schemas = random.Random(fault.luck), self.way.project.schemas
        values, cycles = foreign_records(schemas, chance, self.foreign_cycles)
        self.foreign_cycles += cycles
        topic = self.way.project.topics.raw(REGION, "machine_reading")
        partition = chance.randrange(self.way.setting.partitions)
        while True:  # what was written is counted in the topic, so trying again does no harm
            try:
                async with started(KafkaWriter(self.way.project.cluster(REGION))) as writer:
                    await writer.send(topic, partition, values)
                return
            except TransientError:
                await asyncio.sleep(RETRY_PAUSE_S)
