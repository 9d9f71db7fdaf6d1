"""The page of one case: what the change does to memory and to the launches, what must hold, and what was found."""

from validation.case_page.html import to_case_page
from validation.case_page.model import About, cases_of
from validation.case_page.write import write_case_pages

__all__ = ["About", "cases_of", "to_case_page", "write_case_pages"]
