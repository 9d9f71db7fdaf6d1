"""Reports of a judgement: Markdown, HTML, JUnit and JSON. Nothing here decides, measures or reads a clock."""

from validation.reporting.findings_json import to_findings_json
from validation.reporting.html import to_html
from validation.reporting.junit import to_junit
from validation.reporting.markdown import to_markdown
from validation.reporting.write import write_reports

__all__ = ["to_findings_json", "to_html", "to_junit", "to_markdown", "write_reports"]
