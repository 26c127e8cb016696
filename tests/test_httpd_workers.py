"""The workers: a bounded queue, a deadline, and answers that come later."""

from __future__ import annotations

import os
import sys
import threading
import unittest
from concurrent.futures import Future

from jwksd.httpd import Overloaded, Workers, workers
from tests.httpd_live import PATIENCE, settle


class Pool(unittest.TestCase):
    def pool(self, threads: int, queue_limit: int = 0, queue_seconds: float = 60.0) -> Workers:
        pool = Workers(threads, queue_limit=queue_limit, queue_seconds=queue_seconds)
        self.addCleanup(pool.stop, 5)
        return pool

    def test_finishes_what_it_has_begun(self) -> None:
        pool, gate = self.pool(2), threading.Event()
        begun = [pool.submit(settle, gate.wait, PATIENCE) for _ in range(2)]
        stopping = threading.Thread(target=pool.stop, args=(PATIENCE,))
        stopping.start()
        self.assertFalse(any(future.done() for future in begun))
        gate.set()
        stopping.join(PATIENCE)
        self.assertEqual([future.result(0) for future in begun], [True, True])

    def test_refuses_what_has_no_room(self) -> None:
        pool, gate = self.pool(1, queue_limit=1), threading.Event()
        accepted = [pool.submit(settle, gate.wait, PATIENCE) for _ in range(2)]
        self.assertRaises(Overloaded, pool.submit, settle, gate.wait, PATIENCE)
        gate.set()
        self.assertEqual([future.result(PATIENCE) for future in accepted], [True, True])
        self.assertEqual((pool.refused, pool.queued), (1, 0))

    def test_does_not_run_what_has_waited_for_too_long(self) -> None:
        pool, gate = self.pool(1, 3, queue_seconds=-1.0), threading.Event()  # late from the start
        late = [pool.submit(settle, gate.set) for _ in range(3)]
        for future in late:
            self.assertIsInstance(future.exception(PATIENCE), Overloaded)
        self.assertFalse(gate.is_set())
        self.assertEqual(pool.refused, 3)

    def test_hands_over_what_comes_later_still(self) -> None:
        pool, commit = self.pool(1, queue_limit=1), Future[str]()
        answer, other = pool.submit(settle, lambda: commit), pool.submit(settle, str, 7)
        self.assertEqual(other.result(PATIENCE), "7")  # the thread does not wait for the commit
        self.assertFalse(answer.done())
        commit.set_result("written")
        self.assertEqual(answer.result(PATIENCE), "written")

    def test_gives_what_the_function_raises(self) -> None:
        self.assertIsInstance(self.pool(1).submit(settle, int, "x").exception(PATIENCE), ValueError)

    @unittest.skipUnless(sys.platform == "linux", "only Linux ranks threads one by one")
    def test_steps_back_behind_the_loop(self) -> None:
        def rank() -> int:
            return os.getpriority(os.PRIO_PROCESS, 0)

        own = rank()
        behind = self.pool(1).submit(settle, rank).result(PATIENCE)
        self.assertEqual(behind, min(19, own + workers.STEP_BACK))
        self.assertEqual(rank(), own)

    def test_makes_no_more_threads_than_are_needed(self) -> None:
        pool, before = self.pool(8), threading.active_count()
        for _ in range(5):
            pool.submit(settle, str).result(PATIENCE)
        self.assertEqual(threading.active_count() - before, 1)
