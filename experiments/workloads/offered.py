"""What is sent: a workload, with the arrivals and the clients that were chosen beside it, and a seed for each request.

Every pass over it makes the same requests again, so it can be kept whole where making prompts would disturb a
measurement, and gone through one by one where there are a million.
"""

from __future__ import annotations

import dataclasses
from array import array
from collections.abc import Callable, Iterator
from itertools import repeat
from typing import Any

from experiments.points import RunSettings
from experiments.workloads.arrivals.base import Arrivals
from experiments.workloads.base import Streams, Workload, WorkloadDigest, WorkloadItem
from experiments.workloads.clients.base import Clients, Sender
from experiments.workloads.draws import endless
from experiments.workloads.lengths.base import TakesLengths
from experiments.workloads.prompts import PromptSource


class OfferedLoad:
    """The requests of one repeat, in the order of their arrival.

    Args:
        workload: what is asked.
        source: where its prompts come from.
        seed, repeat: of all chance.
        arrivals: when requests come, instead of when the workload says; requests that follow another come after it
            all the same.
        clients: who sends them, instead of who the workload says; a conversation has one client.
    """

    def __init__(
        self,
        workload: Workload,
        source: PromptSource,
        *,
        seed: int,
        repeat: int,
        arrivals: Arrivals | None = None,
        clients: Clients | None = None,
    ) -> None:
        self._workload, self._source, self._arrivals, self._clients = workload, source, arrivals, clients
        self._seed, self._repeat = seed, repeat
        self._sha256: str | None = None
        self.num_requests = workload.num_requests
        # Clients of a closed loop; None where requests come by the clock.
        self.concurrency = workload.concurrency if arrivals is None else arrivals.concurrency

    @property
    def sha256(self) -> str:
        """Hash of all requests, known once somebody went through all of them."""
        if self._sha256 is None:
            for _ in self:
                pass
        assert self._sha256 is not None
        return self._sha256

    def streams(self) -> Streams:
        """All chance of this repeat, from its beginning."""
        return Streams.make(seed=self._seed, repeat=self._repeat)

    def __iter__(self) -> Iterator[WorkloadItem]:
        # Twice, so that times which the workload draws and nobody uses do not shift those that are used.
        made, own = self.streams(), self.streams()
        seeds = endless(lambda size: own.sampling.integers(0, 2**63 - 1, size=size))
        senders = self._senders(own)
        # By place; where one may follow another, it has that one's client and priority.
        client_ids, priorities = array("q"), array("q")
        num_sent = 0
        digest = WorkloadDigest()
        for item in self._workload.items(made, self._source):
            changes: dict[str, Any] = {"sampling_seed": next(seeds)}
            if item.follows is not None:
                client_id, priority = item.client_id, item.priority
                if self._clients is not None:
                    client_id, priority = client_ids[item.follows], priorities[item.follows]
            else:
                try:
                    arrival_s, client_id, level = next(senders)
                except StopIteration:
                    raise ValueError(
                        f"arrivals: end after {num_sent} requests of workload.num_requests={self.num_requests}; "
                        f"workload.num_requests={num_sent} fits"
                    ) from None
                num_sent += 1
                priority = item.priority if level is None else level
                if self._arrivals is not None:
                    changes["arrival_s"] = arrival_s
            if self._clients is not None:
                changes |= {"client_id": client_id, "priority": priority}
                client_ids.append(client_id)
                priorities.append(priority)
            item = dataclasses.replace(item, **changes)
            digest.add(item)
            yield item
        self._sha256 = digest.hexdigest()

    def _senders(self, own: Streams) -> Iterator[Sender]:
        if self._clients is not None:
            return self._clients.senders(self._arrivals, own.arrivals, own.clients)
        due = repeat(None) if self._arrivals is None else self._arrivals.times(own.arrivals)
        return (Sender(arrival_s, 0, None) for arrival_s in due)


def offered_load(settings: RunSettings, source: Callable[[str], PromptSource], *, max_model_len: int) -> OfferedLoad:
    """What a run's settings say.

    Args:
        source: makes the source of prompts that the workload names.
        max_model_len: tokens of the model's context.

    Raises:
        ValueError: a part that cannot be made, or parts that do not go together.
    """
    workload = settings.workload.make("workload")
    lengths = None if settings.lengths is None else settings.lengths.make("lengths")
    if isinstance(workload, TakesLengths):
        workload = workload.with_lengths(lengths, max_model_len)
    elif settings.lengths is not None:
        raise ValueError(
            f"lengths._target_={settings.lengths.target!r}: this workload has lengths of its own; choose "
            "workload=traffic, workload=prefix_tree or lengths=workload"
        )
    return OfferedLoad(
        workload,
        source(workload.prompts),
        seed=settings.seed,
        repeat=settings.repeat,
        arrivals=None if settings.arrivals is None else settings.arrivals.make("arrivals"),
        clients=None if settings.clients is None else settings.clients.make("clients"),
    )
