"""Real clients, each on a kept connection: what is not installed here is skipped."""

from __future__ import annotations

import http.client
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
import unittest
from importlib import import_module
from pathlib import Path

from jwksd.httpd import Answer, Limits, Request, Response
from tests.httpd_live import LiveServer, Routes
from tests.test_httpd_tls import make_certificate

PAGE = b"""<!doctype html><title>waiting</title><script>
(async () => {
  const words = [];
  for (let i = 0; i < 5; i++) {
    const answer = await fetch('/echo', {method: 'POST', body: 'w' + i});
    words.push(await answer.text());
  }
  words.push((await fetch('/', {method: 'HEAD'})).headers.get('content-length'));
  document.title = words.join(' ');
  document.body.textContent = document.title;
})();
</script><body></body>"""
NODE = """
const url = process.argv[2];
const send = async (size) => {
  const body = new ReadableStream({
    start(controller) {
      for (let i = 0; i < size / 1000; i++) controller.enqueue(new Uint8Array(1000).fill(97));
      controller.close();
    },
  });
  const answer = await fetch(url + '/echo', {method: 'POST', body, duplex: 'half'});
  return [answer.status, (await answer.text()).length];
};
(async () => {
  const found = [];
  for (const size of [1000, 60000, 3000, 1000000]) found.push(await send(size));
  console.log(JSON.stringify(found));
})();
"""


class Pages(Routes):
    def route(self, request: Request) -> Answer:
        if request.path == "/page":
            return Response(200, [("Content-Type", "text/html")], PAGE)
        return super().route(request)


def tool(name: str) -> str:
    """A program's path, or a skipped test."""
    found = shutil.which(name, path=os.environ["PATH"] + ":/usr/sbin")
    if found is None:
        raise unittest.SkipTest(f"{name} is not installed")
    return found


def run(*command: str) -> str:
    """What a program prints on standard output."""
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


class Clients(unittest.TestCase):
    def setUp(self) -> None:
        self.server = LiveServer(handler=Pages, limits=Limits(body=65_536))
        self.server.__enter__()
        self.addCleanup(self.server.__exit__)
        self.url = self.server.url

    def claim_connections(self, count: int) -> None:
        self.assertEqual(self.server.stats.connections_accepted, count)

    def test_curl(self) -> None:
        urls = [f"{self.url}/{path}" for path in ("", "big", "later", "missing")]
        report = run(
            tool("curl"), "-sS", "-o", os.devnull, "-w", "%{http_code} %{size_download}\n",
            *(word for url in urls for word in ("-o", os.devnull, url)),
        )  # fmt: skip
        self.assertEqual(report.split(), ["200", "5", "200", "1000000", "200", "6", "200", "5"])
        self.claim_connections(1)

    def test_curl_that_expects_100_continue(self) -> None:
        report = run(
            tool("curl"), "-sS", "-v", "--stderr", "-", "-H", "Expect: 100-continue",
            "-d", "x" * 2000, f"{self.url}/echo",
        )  # fmt: skip
        self.assertIn("HTTP/1.1 100 Continue", report)
        self.assertTrue(report.rstrip().endswith("x" * 2000) or "x" * 2000 in report)

    def test_curl_that_uploads_too_much_reads_why_not(self) -> None:
        with tempfile.NamedTemporaryFile() as file:
            file.write(bytes(5_000_000))
            file.flush()
            for extra in ((), ("-H", "Transfer-Encoding: chunked"), ("-H", "Expect:")):
                report = run(
                    tool("curl"), "-sS", "-X", "POST", "--data-binary", f"@{file.name}", *extra,
                    "-w", " %{http_code}", f"{self.url}/echo",
                )  # fmt: skip
                self.assertRegex(report, "content_too_large.* 413$")

    def test_curl_over_tls(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            files = make_certificate(folder, "localhost")
            with LiveServer(tls=files) as server:
                url = server.url.replace("127.0.0.1", "localhost")
                report = run(
                    tool("curl"), "-sS", "--cacert", files[0], "-w", "%{http_code} ", f"{url}/",
                    f"{url}/big", "-o", os.devnull, "-o", os.devnull,
                )  # fmt: skip
                self.assertEqual(report.split(), ["200", "200"])
                self.assertEqual(server.stats.connections_accepted, 1)

    def test_curl_over_a_socket_file(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = str(Path(folder, "s"))
            with LiveServer(host=f"unix:{path}"):
                report = run(tool("curl"), "-sS", "--unix-socket", path, "http://localhost/")
                self.assertEqual(report, "hello")

    def test_wrk(self) -> None:
        report = run(tool("wrk"), "-t1", "-c20", "-d1s", self.url)
        self.assertNotIn("Non-2xx", report)
        self.assertNotIn("Socket errors", report)
        self.assertGreater(self.server.stats.requests[200], 100)
        self.assertLessEqual(self.server.stats.connections_accepted, 21)

    def test_ab_with_http_1_0_kept_alive(self) -> None:
        report = run(tool("ab"), "-k", "-n", "500", "-c", "5", f"{self.url}/")
        self.assertRegex(report, r"Failed requests:\s+0")
        self.assertRegex(report, r"Keep-Alive requests:\s+500")
        self.claim_connections(5)

    def test_ab_without_keep_alive(self) -> None:
        report = run(tool("ab"), "-n", "100", "-c", "5", f"{self.url}/")
        self.assertRegex(report, r"Failed requests:\s+0")
        self.assertRegex(report, r"Complete requests:\s+100")

    def test_http_client(self) -> None:
        host, port = self.server.address
        client = http.client.HTTPConnection(host, port, timeout=10)
        for number in range(5):
            client.request("POST", "/echo", body=f"n{number}")
            self.assertEqual(client.getresponse().read(), f"n{number}".encode())
        client.request("POST", "/echo", body=iter([b"a", b"bc"]))
        self.assertEqual(client.getresponse().read(), b"abc")
        client.request("HEAD", "/big")
        head = client.getresponse()
        self.assertEqual((head.read(), head.getheader("Content-Length")), (b"", "1000000"))
        client.close()
        self.claim_connections(1)

    @unittest.skipUnless(importlib.util.find_spec("requests"), "requests is not installed")
    def test_requests(self) -> None:
        session = import_module("requests").Session()
        for number in range(5):
            answer = session.post(f"{self.url}/echo", data=f"n{number}")
            self.assertEqual(answer.text, f"n{number}")
        answer = session.post(f"{self.url}/echo", data=(b"%d," % n for n in range(100)))
        self.assertEqual(answer.content, b"".join(b"%d," % n for n in range(100)))
        self.assertEqual(session.post(f"{self.url}/echo", data=bytes(100_000)).status_code, 413)
        session.close()
        self.claim_connections(1)

    def test_node_with_a_body_that_streams(self) -> None:
        report = run(tool("node"), "-e", NODE, "script", self.url)
        self.assertIn("[[200,1000],[200,60000],[200,3000],[413,", report)
        self.assertLessEqual(self.server.stats.connections_accepted, 4)

    def test_chromium(self) -> None:
        program = shutil.which("chromium") or tool("google-chrome")
        with tempfile.TemporaryDirectory() as profile:
            page = run(
                program, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom",
                f"--user-data-dir={profile}", "--virtual-time-budget=5000", f"{self.url}/page",
            )  # fmt: skip
        found = re.search("<body>(.*)</body>", page)
        self.assertEqual(found and found[1].strip(), "w0 w1 w2 w3 w4 5", page)
        self.assertLessEqual(self.server.stats.connections_accepted, 4)


if __name__ == "__main__":
    unittest.main()
