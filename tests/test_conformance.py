"""What every engine must do, asked of SQLite (tests/live/postgres.py asks PostgreSQL)."""

from __future__ import annotations

import unittest

from tests import store_conformance
from tests.support import TemporaryFolder


class SQLiteConforms(store_conformance.Conformance, TemporaryFolder):
    def open_engine(self):
        return self.open_database()


class Times(store_conformance.OfTheTimes):
    pass


del store_conformance
if __name__ == "__main__":
    unittest.main()
