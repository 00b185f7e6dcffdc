"""All events, in the order of the tables."""

from bindlock.proof.event import Event
from bindlock.proof.events import children, crowd, descriptors, endings, files, memory, places, stops

ALL: tuple[Event, ...] = tuple(
    value
    for module in (endings, stops, memory, children, descriptors, files, places, crowd)
    for value in vars(module).values()
    if isinstance(value, Event)
)
