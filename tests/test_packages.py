"""The two packages: too old or missing is one line, before anything is touched.

Their versions stand in one place; what else names them agrees with it.
"""

from __future__ import annotations

import json
import re
import unittest

from jwksd.ops import packages
from tests.support import ROOT


class TheFloors(unittest.TestCase):
    def test_stand_in_requirements_txt(self):
        lines = (ROOT / "requirements.txt").read_text("utf-8").splitlines()
        named = [line for line in lines if line and not line.startswith("#")]
        self.assertEqual([re.split("[,;]", line)[0] for line in named], packages.requirements())

    def test_stand_in_the_head_of_server_py(self):
        source = (ROOT / "server.py").read_text("utf-8")
        found = re.search(r"^# dependencies = (\[.*\])$", source, re.MULTILINE)
        self.assertIsNotNone(found)
        self.assertEqual(json.loads(found[1]), packages.requirements())

    def test_are_those_of_packages_that_both_commands_name_when_one_is_missing(self):
        self.assertEqual(packages.MODULES, {"argon2", "cryptography"})
        another = ModuleNotFoundError("x", name="another")
        self.assertRaises(ModuleNotFoundError, packages.refuse_without, another)


if __name__ == "__main__":
    unittest.main()
