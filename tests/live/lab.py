"""The README's trial of jwt_minimal.py, all of it: a hundred programs started, none misled."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import unittest

from tests.support import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


class TheReadme(unittest.TestCase):
    def test_tries_jwt_minimal_and_finds_nothing(self):
        line = re.search(r"python lab\.py run .*", README)[0]
        words = [sys.executable if word == "python" else word for word in shlex.split(line)]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertRegex(done.stdout, r"^0 of 1\d\d tokens were misjudged\n$")


if __name__ == "__main__":
    unittest.main()
