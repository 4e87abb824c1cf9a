"""`soft`: while training, what is pruned is chosen anew all the time, and may grow back."""

from .gates import Gated
from .method import FILTER_FLAGS, Method
from .zeroing import SCHEDULES, Zeroing


class Soft(Gated):
    """Close the weakest channels on a ramp; those that recover open again, until they are cut.

    With --schedule he2018 or asymptotic it is soft filter pruning as published; see zeroing.py.
    """

    defaults = {"criterion": "gate", "schedule": "cubic"}
    flags = (*FILTER_FLAGS, "schedule", "ramp")
    unfit = ("taylor",)  # no images while training
    revives = True

    @classmethod
    def variant(cls, schedule: str | None) -> type[Method]:
        if schedule in (None, "cubic"):
            return cls
        if schedule not in SCHEDULES:
            raise ValueError(f"--schedule {schedule} is none of cubic, {', '.join(SCHEDULES)}")
        return Zeroing
