"""What things are: errors, configs, records and the words of the command line."""

__all__ = ["config", "errors", "grammar", "inputs", "methods", "records", "rudiments", "sweep_spec"]
