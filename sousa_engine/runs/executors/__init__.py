"""Where runs are carried out: local processes, or anything else with the verbs submit, poll and stop."""

from sousa_engine.runs.executors.base import Executor, Sighting, device_of, slots

__all__ = ["Executor", "Sighting", "device_of", "slots"]
