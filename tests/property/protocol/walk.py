"""Ways through the protocol's model: at random, and all of them breadth first.

What may happen and what must hold is `world`'s business.
"""

from __future__ import annotations

import random
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from tests.property.protocol.replay import installed
from tests.property.protocol.world import Setting, Step, ViolationError, World

# How often each kind of step is chosen, if it may happen. Progress is likely; or nothing would ever be acknowledged.
WEIGHTS: Final = {
    "hear": 30, "go on": 30, "serve": 30, "deliver": 30, "start": 12, "anchor": 10, "start cas": 10, "renew": 1,
    "timeout": 1, "kill": 0.7, "lose": 0.5, "time": 0.8, "jump": 0.3, "stop cas": 0.4, "recover cas": 0.5, "half start": 1, "stop within": 2, "save store": 1,
    "copy disk": 1, "save disk": 0.7, "put back": 0.7, "mode": 0.2,
    "sign": 0.3, "restore": 0.5,
}  # fmt: skip
_RARE: Final = {"lost": 0.05, "done": 0.1}  # faults of the store, against ordinary serving
_SAY: Final = 60  # last steps of a way that broke a promise


class BrokenError(AssertionError):
    """A promise was broken, and on which way."""

    def __init__(self, problem: str, origin: str, way: Sequence[Step]) -> None:
        self.problem = problem
        steps = "\n".join(f"  {number:4} {step}" for number, step in enumerate(way) if number >= len(way) - _SAY)
        super().__init__(f"{problem}\n{origin}, {len(way)} steps, the last of them:\n{steps}")


def walk(setting: Setting, seed: int, steps: int) -> World:
    """Go *steps* steps at random.

    Raises:
        BrokenError: A promise was broken.
    """
    with installed():
        rng = random.Random(seed)
        world = World(setting)
        way: list[Step] = []
        for _ in range(steps):
            kinds: dict[str, list[Step]] = {}
            for step in world.steps():
                kinds.setdefault(step[0], []).append(step)
            if not kinds:
                break
            kind = rng.choices(list(kinds), [WEIGHTS[kind] for kind in kinds])[0]
            step = rng.choice(kinds[kind])
            if kind == "serve" and step[3] and rng.random() > _RARE[step[3]]:
                step = (*step[:3], "")
            elif kind == "deliver" and step[3] and rng.random() > 0.1:
                step = (*step[:3], False)
            elif kind == "start" and step[2] in {"close", "read"} and rng.random() > 0.2:
                continue
            way.append(step)
            try:
                world.do(step)
            except ViolationError as exc:
                raise BrokenError(str(exc), f"seed {seed} of {setting}", way) from exc
        return world


def recovers(world: World, number: int = 0) -> bool:
    """End all faults, and tell whether a client can open the volume and commit."""
    with installed():
        for client in world.clients:
            world.do(("kill", client.number, ""))
        for process in range(len(world.processes)):
            if not world.processes[process].up:
                world.do(("recover cas", process) if world.setting.sqlite else ("start cas", process, -1))
            world.do(("jump", process, -world.processes[process].skew_s))
        world.do(("time", 600))
        world.requests = ()  # a late `acquire` would keep everybody out until its lease ends
        for server in world.processes:
            server.handlers = ()
        before = world.count["fsyncs"]
        for what in ("open", "commit"):
            world.do(("start", number, what))
            while world.clients[number].main is not None:
                ways: dict[str, Step] = {}
                for step in world.steps():
                    if step[0] in {"hear", "go on", "anchor"} or (step[0] in {"deliver", "serve"} and not step[3]):
                        ways.setdefault(step[0], step)
                world.do(ways[min(ways)])
            if world.clients[number].session is None:
                return False
        return world.count["fsyncs"] > before


@dataclass(frozen=True, slots=True)
class Explored:
    """How far a search came."""

    states: int
    depth: int  # all ways of so many steps were gone
    complete: bool  # there are no others
    count: Counter[str]


def explore(setting: Setting, *, seconds: float, depth: int = 1000) -> Explored:
    """Go all ways, shortest first, each state once.

    Raises:
        BrokenError: A promise was broken; the way is a shortest one.
    """
    with installed():
        start = World(setting)
        came_from: dict[int, tuple[int, Step] | None] = {hash(start.key()): None}
        queue = deque([(start, hash(start.key()), 0)])
        end = time.monotonic() + seconds
        reached = 0
        while queue:
            world, key, reached = queue.popleft()
            if reached >= depth or time.monotonic() > end:
                return Explored(len(came_from), reached, complete=False, count=start.count)
            for step in world.steps():
                new = world.copy()
                try:
                    new.do(step)
                except ViolationError as exc:
                    way = [step]
                    at = came_from[key]
                    while at is not None:
                        way.append(at[1])
                        at = came_from[at[0]]
                    raise BrokenError(str(exc), f"all ways of {setting}", way[::-1]) from exc
                name = hash(new.key())
                if name not in came_from:
                    came_from[name] = (key, step)
                    queue.append((new, name, reached + 1))
        return Explored(len(came_from), reached, complete=True, count=start.count)
