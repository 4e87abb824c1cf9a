"""The subject: criteria, allocation, surgery and methods. Knows networks, not training."""

from .config import METHODS, PruningConfig, name_of, resolve
from .library import prune, prune_step
from .method import Method, Pruned, Record, State, Task
