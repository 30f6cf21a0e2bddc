"""Doctor: check this installation and this machine, name the fix of each problem, change nothing."""

from sousa_engine.maintenance.doctor.examination import ask, examine
from sousa_engine.maintenance.doctor.findings import Finding, Level, as_text, from_json, summary, to_json, worst

__all__ = ["Finding", "Level", "as_text", "ask", "examine", "from_json", "summary", "to_json", "worst"]
