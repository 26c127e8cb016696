"""PostgreSQL: what every engine must do, and what can befall this one alone."""

from __future__ import annotations

import itertools
import os
import unittest
from typing import ClassVar
from unittest import mock

from tests import store_conformance
from tests.live.clusters import Cluster, Clusters, why_not

REASON = why_not()
if REASON is None:
    from jwksd.store.postgres import PostgreSQL

NUMBERS = itertools.count(1)


@unittest.skipIf(REASON, REASON or "")
class OnAPrimary(unittest.TestCase):
    """A test on a fresh database of one primary, which the whole class shares."""

    clusters: ClassVar[Clusters]
    primary: ClassVar[Cluster]

    @classmethod
    def setUpClass(cls) -> None:
        cls.clusters = Clusters()
        cls.addClassCleanup(cls.clusters.close)
        known = mock.patch.dict(os.environ, PGPASSFILE=str(cls.clusters.passfile))
        known.start()
        cls.addClassCleanup(known.stop)
        cls.primary = cls.clusters.primary()

    def setUp(self) -> None:
        name = f"db{next(NUMBERS)}"
        self.primary.sql(f"CREATE DATABASE {name} OWNER keys")
        self.url = self.clusters.url(self.primary).rpartition("/")[0] + f"/{name}"
        super().setUp()

    def open_engine(self, **options) -> PostgreSQL:
        engine = PostgreSQL(self.url, **options)
        self.addCleanup(engine.close)
        return engine


class PostgreSQLConforms(OnAPrimary, store_conformance.Conformance):
    pass


if __name__ == "__main__":
    unittest.main()
