"""Run folders, as tests of the report have them."""

from tests.report.conftest import folder as folder
from tests.report.conftest import hostile as hostile
from tests.report.conftest import run as run
