"""Every command of every page runs: in order, page by page, each in a fresh copy of the project.

    page -> its shell blocks -> one script -> bash, alone in namespaces of its own

A page has processes and a network of its own, with nothing but loopback: port 8080 is always free,
nothing is downloaded, and what the page started ends with it. A line that serves runs on in the
background until the page starts the next one; the script waits for what it says when it is ready.
The blocks that cannot run here stand in LEFT, each with its reason.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import unittest
import venv
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from jwksd.grading import sandbox
from tests.support import ROOT, TemporaryFolder

PATIENCE = 300  # s for a page; the longest takes a tenth of that on two idle cores
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("deploy/*")]
FENCED = re.compile(r"(?:<!-- file (\S+) -->\n)?```(\w+)\n(.*?)```\n", re.DOTALL)
COMMENTED = re.compile(r"(?m)(?:^#   .*\n)+")  # in a file of deploy/
SHELLS = ("sh", "bash", "console", "shell")
COMMANDS = r"(?:python3?|curl|pip|venv/bin/\w+|sh|bash|podman|systemctl) "

# A line of a block that cannot run here, and why.
LEFT = {
    "venv/bin/python -m unittest": ".ci/run begins with it",
    ".ci/run    ": "CONTRIBUTING.md: the three commands that start this test, too",
    "python -m bench.page": "takes half an hour",
    "apt-get install python3-cryptography python3-argon2":
        "needs root and a network; tests/live/debian.py has a root with these packages",
    "venv/bin/pip install --require-hashes -r requirements.lock":
        "needs a network; tests/live/release.py installs the lock",
    "-march=native": "needs a network; tests/live/release.py runs it",
    "venv/bin/pip install --no-index --find-links wheels-linux-x86_64":
        "its folder needs a network; tests/live/release.py makes one and installs it",
    "pip install -r requirements-postgres.txt": "needs a network and a database",
    "python server.py --db postgresql://":
        "needs the hosts that it names; tests/live/postgres.py has two",
    "python admin.py migrate --from keys.db --to postgresql://":
        "needs the host that it names; tests/live/postgres.py runs the command",
    "podman build -t": "needs podman and a registry; tests/live/deploy.py tries the file's parts",
}  # fmt: skip

# What stands for something of the reader's.
INSTEAD = {
    r"python3 (?=-m venv)": f"{sys.base_prefix}/bin/python3 ",  # the one of the machine
    r"\bTOKEN\b": '"$(log_in)"',
    r"\bKID\b": '"$(python admin.py keys list | sed -n 2p | cut -f 1)"',
    r"/etc/": "$page/etc/",
    r"/autograder/": "$page/autograder/",
    r"/tmp/out": "$page/out",
}

# A line that does not return, and what it says once it serves.
SERVES = re.compile(r"server\.py( --(?!check|version).*)?$|\.pyz --port|lab\.py serve|log --follow")
BEGIN = r"""
set -meu -o pipefail
page=$PWD
stop() {  # stop PROCESS: as Ctrl-C would; it may have ended already
    kill -INT -- "-$1" || true
    wait "$1" || true
}
serving=
ready() {  # the last command in the background has said that it serves
    serving=$!
    until grep -qsP 'ready: |^http://|\t' serving.log; do
        kill -0 "$serving" || { cat serving.log; exit 1; }
        sleep 0.1
    done
}
member() { sed "s/.*\"$1\":\"\([^\"]*\)\".*/\1/"; }
log_in() {  # print a token of alice
    local url=http://127.0.0.1:8080 password
    password=$(curl -sf $url/register -d '{"username": "alice"}' | member password)
    curl -sf $url/auth -d "{\"username\": \"alice\", \"password\": \"$password\"}" | member token
}
"""
# The log is a new file: in the old one, `ready` would find what the one before has said.
SERVE = """
[ -z "$serving" ] || stop "$serving"
rm -f serving.log
{{ {}
}} >serving.log 2>&1 &
ready
"""

# A service of the reader, as docs/lab.md asks for: 200 or 401 by the keys on port 9000.
SERVICE = """
import http.server, json, urllib.request
import jwt_minimal

class Service(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        cookie = self.headers["Cookie"]
        token = cookie.split("=", 1)[1] if cookie else self.headers["Authorization"][7:]
        with urllib.request.urlopen("http://127.0.0.1:9000/.well-known/jwks.json") as answer:
            jwks = json.load(answer)
        try:
            jwt_minimal.decode(token, jwks, issuer="https://issuer.example", audience="lab")
            self.send_response(200)
        except jwt_minimal.InvalidToken:
            self.send_response(401)
        self.end_headers()

    def log_message(self, *words):
        pass

server = http.server.ThreadingHTTPServer(("127.0.0.1", 8000), Service)
print("http://127.0.0.1:8000", flush=True)
server.serve_forever()
"""
# What the reader of a page has before its first block.
BEFORE = {
    "accounts-and-limits.md": "export JWKS_DB=keys.db\npython server.py\nlog_in\n",
    "embedding.md": """
mkdir project
cd project
ln -s .. jwks-server
echo "import server" >test_it.py
""",
    "exercises.md": "cp jwt_minimal.py mine.py\npython server.py\n",
    "grading.md": """
mkdir -p autograder/source autograder/submission autograder/results
ln -s ../.. autograder/source/jwks-server
echo name,folder,start >CLASS.csv
echo 'submission,autograder/submission,python -m http.server --bind 127.0.0.1 {port}' >>CLASS.csv
cp docs/rubrics/contract.json RUBRIC.json
python server.py
""",
    "jwks-server.service": "mkdir etc\n",
    "lab.md": f"""
cat >service.py <<'END'
{SERVICE}END
python service.py >serving.log &
ready
serving=  # it stays
""",
    "operations.md": "export JWKS_DB=keys.db\npython server.py\n",
    "services.md": "python admin.py users add alice\n",
}  # fmt: skip


class Page:
    """A page as a script: what its reader has, files that it shows, and its blocks."""

    def __init__(self, path: Path) -> None:
        self.name = path.relative_to(ROOT).as_posix()
        self.text = path.read_text("utf-8")
        self.before = BEFORE.get(path.name, "")
        if path.parent.name == "deploy":
            texts = COMMENTED.findall(self.text)
            self.blocks = [("", re.sub("(?m)^# +", "", text)) for text in texts]
        else:
            found = FENCED.findall(self.text)
            self.blocks = [(file, text) for file, language, text in found
                           if file or language in SHELLS]  # fmt: skip
        self.commands = [text for file, text in self.blocks if not file]

    def script(self) -> str:
        """What bash runs; each block is announced, so that a failure names it."""
        parts = [BEGIN, *map(in_background, self.before.splitlines(True))]
        for file, text in self.blocks:
            if file:
                parts.append(f"mkdir -p $(dirname {file})\ncat >{file} <<'END'\n{text}END\n")
            elif reason(text) is None:
                parts.append(f"echo == {shlex.quote(text.splitlines()[0])}\n")
                for pattern, ours in INSTEAD.items():
                    text = re.sub(pattern, ours.replace("\\", "\\\\"), text)
                parts.extend(map(in_background, text.splitlines(True)))
        return "".join([*parts, '[ -z "$serving" ] || stop "$serving"\n'])


def reason(block: str) -> str | None:
    """Why a block is left out, if it is."""
    return next((why for line, why in LEFT.items() if line in block), None)


def in_background(line: str) -> str:
    """A line of a script; one that serves runs in the background until it serves."""
    command = line.partition("  #")[0].strip()
    return SERVE.format(command) if SERVES.search(command) else line


class EveryBlock(unittest.TestCase):
    def test_runs_or_has_a_reason_not_to(self):
        blocks = [text for page in map(Page, PAGES) for text in page.commands]
        self.assertGreater(len(blocks), 25)
        for line in LEFT:
            with self.subTest(line):
                self.assertEqual(sum(line in text for text in blocks), 1)

    def test_looks_like_one(self):
        """No command hides in a block of another kind."""
        for page in map(Page, PAGES):
            others = re.findall(rf"(?m)^(?:    |```\n\$? ?|#  ?){COMMANDS}.*", page.text)
            self.assertEqual(others, [], page.name)


@unittest.skipUnless(sandbox.works(sys.executable, Path("/tmp"), ROOT), "namespaces do not work")
class EveryPage(TemporaryFolder):
    shares_database = True  # with what the pages start
    maxDiff = None  # what a page said, whole

    def setUp(self) -> None:
        super().setUp()
        self.environment = self.folder / "venv"
        venv.create(self.environment, with_pip=True)
        (packages,) = self.environment.glob("lib/*/site-packages")
        # The packages of this environment are those of the new one: nothing is downloaded.
        ours = [path for path in sys.path if path.endswith("-packages")]
        (packages / "ours.pth").write_text("\n".join(ours), "utf-8")

    def fresh(self, name: str) -> Path:
        """A copy of the project, with an environment that has the packages."""
        folder = self.folder / name
        unwanted = shutil.ignore_patterns("venv", ".git", ".*cache", "__pycache__", "*.db*")
        shutil.copytree(ROOT, folder, ignore=unwanted)
        shutil.copytree(self.environment, folder / "venv", symlinks=True)
        for script in folder.glob("venv/bin/pip*"):
            text = script.read_text("utf-8")
            script.write_text(text.replace(str(self.environment), f"{folder}/venv"), "utf-8")
        os.symlink(ROOT / ".git", folder / ".git")
        return folder

    def run_page(self, page: Page) -> str:
        """Run a page alone in a fresh folder; what it said if it failed."""
        folder = self.fresh(page.name.replace("/", "-"))
        # A run in the background has Ctrl-C ignored, and would pass that on to what the page stops.
        begin = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL);"
        begin += "from jwksd.grading import sandbox; sandbox.no_network();"
        begin += "os.execvp('bash', ['bash', '-c', sys.argv[1]])"
        clean = {name: value for name, value in os.environ.items()
                 if not name.startswith(("JWKS_", "NOT_MY_KEY", "PYTHON"))}  # fmt: skip
        clean["PATH"] = f"{folder}/venv/bin:{clean['PATH']}"
        try:
            run = subprocess.run(
                [*sandbox.ISOLATED, sys.executable, "-c", begin, page.script()],
                cwd=folder, env=clean, timeout=PATIENCE, check=False, stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
            )  # fmt: skip
        except subprocess.TimeoutExpired as late:
            said = (late.stdout or b"").decode(errors="replace")
            return said[-5000:] + f"\nno end within {PATIENCE} s"
        return run.stdout[-5000:] + f"\nexit status {run.returncode}" if run.returncode else ""

    def test_runs_from_top_to_bottom(self):
        pages = [page for page in map(Page, sorted(PAGES)) if not all(map(reason, page.commands))]
        with ThreadPoolExecutor(2) as pool:
            for page, said in zip(pages, pool.map(self.run_page, pages)):
                with self.subTest(page.name):
                    self.assertEqual(said, "")


if __name__ == "__main__":
    unittest.main()
