"""On which stream each stage of a form runs, and what it waits for."""

from __future__ import annotations

from dataclasses import dataclass

from vsa_rt.engines.cuda.seam import Form, Stage


@dataclass(frozen=True)
class Step:
    """One stage in its place.

    Attributes:
        stage: What runs.
        stream: Number of its stream; 0 is the slot's main one.
        forks: Whether its stream begins with it, after nothing but the inputs.
        waits: Numbers of the steps on other streams whose outputs it takes.
        marked: Whether another stream waits for it.
    """

    stage: Stage
    stream: int
    forks: bool
    waits: tuple[int, ...]
    marked: bool


@dataclass(frozen=True)
class Schedule:
    """How a form's stages run beside each other.

    Attributes:
        name: The form's.
        steps: In the order of its stages.
        joins: Numbers of the steps that the main stream still has to wait for at the end.
        streams: How many streams there are, the main one included.
    """

    name: str
    steps: tuple[Step, ...]
    joins: tuple[int, ...]
    streams: int

    @property
    def forks(self) -> bool:
        """Whether a stream begins after the inputs beside the main one."""
        return any(step.forks for step in self.steps)


def _sources(form: Form) -> list[list[int]]:
    """Number of each stage to those of the stages whose outputs it takes."""
    maker = {
        port.name: number
        for number, stage in enumerate(form.stages)
        for port in stage.engine.ports
        if not port.taken
    }
    return [
        sorted({maker[port.name] for port in stage.engine.ports if port.taken and port.name in maker})
        for stage in form.stages
    ]


def schedule_of(form: Form) -> Schedule:
    """Share a form's stages out.

    A stage follows one that it waits for on the same stream; where another stage already does, or it waits for none,
    it has a stream of its own. The first of all is on the main stream. So stages that may run beside each other are
    on different streams, and those on one stream never do.

    Args:
        form: Its stages each come after those whose outputs they take.
    """
    sources = _sources(form)
    last: list[int] = []  # the newest step of each stream
    streams: list[int] = []
    for number, before in enumerate(sources):
        follows = [stream for stream, newest in enumerate(last) if newest in before]
        streams.append(follows[0] if follows else len(last))
        if not follows:
            last.append(number)
        last[streams[number]] = number
    waits = [tuple(n for n in before if streams[n] != streams[i]) for i, before in enumerate(sources)]
    seen = {n for i, waited in enumerate(waits) if streams[i] == 0 for n in waited}
    joins = tuple(n for n in last[1:] if n not in seen)
    marked = {n for waited in waits for n in waited} | set(joins)
    steps = tuple(
        Step(stage, streams[i], streams[i] > 0 and not sources[i], waits[i], i in marked)
        for i, stage in enumerate(form.stages)
    )
    return Schedule(form.name, steps, joins, len(last))
