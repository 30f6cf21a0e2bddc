"""Where runs are carried out. Local processes now; anything with the same three verbs later: submit, poll, stop."""

from sousa_engine.runs.executors.base import Executor, Sighting, device_of, slots

__all__ = ["Executor", "Sighting", "device_of", "slots"]
