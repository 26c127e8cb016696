"""The log of a process whose standard error is closed, or that nobody reads."""

from __future__ import annotations

import subprocess
import sys
import unittest

from tests.support import ROOT


class Lines(unittest.TestCase):
    def test_without_a_standard_error_hurt_nobody(self) -> None:
        program = (
            "from jwksd.httpd.log import LineLog; l = LineLog(); "
            "l.write('x'); l.flush(5); exit(l.dropped)"
        )
        run = subprocess.run(
            ["/bin/sh", "-c", '"$0" -c "$1" 2>&-', sys.executable, program], cwd=ROOT, timeout=20
        )
        self.assertEqual(run.returncode, 1)

    def test_that_nobody_reads_do_not_hold_up_the_end_of_the_process(self) -> None:
        program = "from jwksd.httpd.log import LineLog; l = LineLog(); l.write('x' * 200_000)"
        with subprocess.Popen(
            [sys.executable, "-c", program], stderr=subprocess.PIPE, cwd=ROOT
        ) as run:
            self.assertEqual(run.wait(20), 0)


if __name__ == "__main__":
    unittest.main()
