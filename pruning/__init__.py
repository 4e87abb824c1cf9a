"""The subject: criteria, allocation, surgery and methods. Knows networks, not training."""

from .config import PruningConfig, name_of, resolve
from .filters import Filters
from .method import Method, Pruned, State, Task
from .soft import Soft
from .weight import Weight

# By the name that --method takes.
METHODS: dict[str, type[Method]] = {"l1": Filters, "soft": Soft, "weight": Weight}

__all__ = ["METHODS", "Method", "Pruned", "PruningConfig", "State", "Task", "name_of", "resolve"]
