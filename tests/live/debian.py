"""The one file and the unit in a root of Debian's packages: Python, its two packages, nothing else.

    dpkg's lists -> a folder -> namespaces, chroot -> the unit's command and environment
                                                   -> somebody registers, logs in, verifies

The root is copied from the packages of this machine, with all that they depend on: it has no pip,
no compiler, no shell, and no network but loopback.
"""

from __future__ import annotations

import ctypes.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

from jwksd.grading import sandbox
from tests.support import ROOT

PACKAGES = ("python3", "python3-cryptography", "python3-argon2")  # as docs/install.md says
UNIT = (ROOT / "deploy/jwks-server.service").read_text("utf-8")
INSTALL = (ROOT / "docs/install.md").read_text("utf-8")
LEFT_OUT = re.compile(r"/usr/share/(doc|man|locale|lintian|info)/")
PATIENCE = 120  # s; it takes a few

# Becomes the root's Python, with a network of its own, perhaps under a filter that refuses.
ENTER = """
import ctypes, os, sys
from jwksd.grading import sandbox
root, names, *command = sys.argv[1:]
sandbox.no_network()
sandbox.must(sandbox.libc().mount(b"proc", os.fsencode(root) + b"/proc", b"proc", 0, None), "mount")
seccomp = ctypes.CDLL("libseccomp.so.2") if names else None
os.chroot(root)
os.chdir("/")
if seccomp:
    seccomp.seccomp_init.restype = ctypes.c_void_p
    refuse, allow = 0x00050001, 0x7FFF0000  # SCMP_ACT_ERRNO(EPERM), SCMP_ACT_ALLOW
    rules = ctypes.c_void_p(seccomp.seccomp_init(refuse))
    for name in names.split():
        number = seccomp.seccomp_syscall_resolve_name(name.encode())
        if number >= 0:  # else this processor has no such call
            assert seccomp.seccomp_rule_add(rules, allow, number, 0) == 0, name
    assert seccomp.seccomp_load(rules) == 0
os.execv(command[0], command)
"""

# Runs in the root: the unit's command, and a client of what it starts. Prints JSON.
CLIENT = """
import json, os, subprocess, sys, urllib.request
command, url, told = sys.argv[1:], "http://127.0.0.1:8080", {}

def ask(path, **members):
    body = json.dumps(members).encode() if members else None
    with urllib.request.urlopen(url + path, body, timeout=30) as answer:
        return json.load(answer)

def run(*words):
    done = subprocess.run([*command, *words], capture_output=True, text=True, timeout=60)
    return [done.returncode, done.stdout + done.stderr]

try:
    os.setpriority(os.PRIO_PROCESS, 0, 1)
    told["priority"] = "given"
except PermissionError:
    told["priority"] = "refused"
server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
try:
    for line in server.stderr:
        told["said"] = told.get("said", "") + line
        if line.startswith("ready: "):
            break
    password = ask("/register", username="alice")["password"]
    token = ask("/auth", username="alice", password=password)["token"]
    checks = ["--jwks", url + "/.well-known/jwks.json", "--issuer", os.environ["JWKS_ISSUER"]]
    told["decode"] = run("decode", token, *checks)
    told["log"] = run("admin", "log", "--last", "1")
finally:
    server.terminate()
    told["end"] = server.wait(30)
    print(json.dumps(told))
"""


def installed() -> dict[str, tuple[str, str]]:
    """The packages of this machine, also by what they provide: their name, and what they need."""
    form = "${Package}\\t${Depends},${Pre-Depends}\\t${Provides}\\n"
    lines = output("dpkg-query", "-W", "-f", form).splitlines()
    found: dict[str, tuple[str, str]] = {}
    for package, needs, provides in (line.split("\t") for line in lines):
        for name in (package, *provides.split(",")):
            found.setdefault(name.split("(")[0].strip(), (package, needs))
    return found


def output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def with_needs(names: tuple[str, ...]) -> set[str]:
    """Packages, and all that they depend on."""
    known, chosen, todo = installed(), set[str](), list(names)
    while todo:
        package, needs = known.get(todo.pop(), ("", ""))
        if package and package not in chosen:
            chosen.add(package)
            todo += re.findall(r"(?:^|[,|]) *([\w.+-]+)", needs)
    return chosen


def make_root(root: Path) -> None:
    """Copy the packages' files; folders that are links on this machine are links there, too."""
    for name in ("bin", "lib", "lib64", "sbin"):
        if Path("/", name).is_symlink():
            root.joinpath(name).symlink_to(os.readlink(f"/{name}"))
    for line in output("dpkg", "-L", *sorted(with_needs(PACKAGES))).splitlines():
        if line.startswith("/") and not LEFT_OUT.match(line) and os.path.lexists(line):
            real = os.path.join(os.path.realpath(os.path.dirname(line)), os.path.basename(line))
            target = Path(f"{root}{real}")
            if os.path.isdir(real) and not os.path.islink(real):
                target.mkdir(parents=True, exist_ok=True)
            elif not os.path.lexists(target):
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(real, target, follow_symlinks=False)


def allowed_calls() -> str:
    """The system calls that the unit allows, by name."""
    lists = re.findall(r"(?m)^SystemCallFilter=(.*)$", UNIT)
    allowed = calls(lists[0])
    for words in lists[1:]:
        allowed = allowed - calls(words[1:]) if words[0] == "~" else allowed | calls(words)
    return " ".join(sorted(allowed))


def calls(words: str) -> set[str]:
    """What the sets of systemd hold; a set may name others."""
    found: set[str] = set()
    for word in words.split():
        if word.startswith("@"):
            lines = output("systemd-analyze", "syscall-filter", word).splitlines()[1:]
            found |= calls(" ".join(line for line in lines if "#" not in line))
        else:
            found.add(word)
    return found


@unittest.skipUnless(shutil.which("dpkg") and sandbox.works(sys.executable, Path("/tmp"), ROOT),
                     "needs dpkg and namespaces")  # fmt: skip
class ARootOfDebian(unittest.TestCase):
    root: Path

    @classmethod
    def setUpClass(cls) -> None:
        missing = [name for name in PACKAGES if name not in installed()]
        if missing:
            raise unittest.SkipTest(f"not installed: {' '.join(missing)}")
        folder = tempfile.TemporaryDirectory(prefix="jwks-debian-")
        cls.addClassCleanup(folder.cleanup)
        cls.root = Path(folder.name, "root")
        for name in ("proc", "dev", "tmp", "run/credentials", "opt/jwks-server"):
            cls.root.joinpath(name).mkdir(parents=True)
        make_root(cls.root)
        release = [sys.executable, str(ROOT / "tools/release.py"), "--out", folder.name]
        subprocess.run(release, check=True, timeout=PATIENCE)
        (one,) = Path(folder.name).glob("*.pyz")
        shutil.copy(one, cls.root / "opt/jwks-server/jwks-server.pyz")
        cls.root.joinpath("run/credentials/secret").write_text("a secret of the tests", "ascii")

    def setUp(self) -> None:
        state = self.root / "var/lib/jwks-server"
        shutil.rmtree(state, ignore_errors=True)
        state.mkdir(0o700, parents=True)

    def enter(self, calls: str, *words: str) -> subprocess.CompletedProcess[str]:
        """Run the root's Python there; under a filter, if it is given the calls to allow."""
        python = "/usr/bin/python3"
        assignments = re.findall(r"(?m)^Environment=(\w+)=(.*)$", UNIT)
        environ = {name: value.replace("%d", "/run/credentials") for name, value in assignments}
        return subprocess.run(
            [*sandbox.ISOLATED, sys.executable, "-c", ENTER, str(self.root), calls, python, *words],
            cwd=ROOT, env={**environ, "PYTHONDONTWRITEBYTECODE": "1"}, timeout=PATIENCE,
            capture_output=True, text=True, check=False,
        )  # fmt: skip

    def serve(self, calls: str) -> dict[str, str]:
        """What the client says of the command in the unit; it logged in."""
        command = re.search(r"(?m)^ExecStart=(.*)$", UNIT)[1].split()
        run = self.enter(calls, "-c", CLIENT, *command)
        told = json.loads(run.stdout or "{}")
        self.assertEqual(run.returncode, 0, (told, run.stderr))
        self.assertIn("ready: http://127.0.0.1:8080 database=/var/lib/jwks-server/", told["said"])
        for name, words in (("decode", '"sub": "alice"'), ("log", "\talice\n")):
            self.assertEqual((told[name][0], words in told[name][1]), (0, True), told[name])
        self.assertEqual(told["end"], 0)
        return told

    def test_has_the_packages_of_debian_and_no_pip(self):
        code = "import argon2, cryptography, sys, importlib.util as u;"
        code += "print(argon2.__file__, cryptography.__file__, u.find_spec('pip'), sys.prefix)"
        run = self.enter("", "-c", code)
        self.assertIn(f"apt-get install {' '.join(PACKAGES[1:])}\n", INSTALL)
        packages = "/usr/lib/python3/dist-packages"
        expected = f"{packages}/argon2/__init__.py {packages}/cryptography/__init__.py None /usr\n"
        self.assertEqual((run.stdout, run.stderr), (expected, ""))

    def test_runs_the_unit_from_one_file(self):
        self.assertEqual(self.serve("")["priority"], "given")

    @unittest.skipUnless(
        shutil.which("systemd-analyze") and ctypes.util.find_library("seccomp"),
        "systemd-analyze or libseccomp is not installed",
    )
    def test_runs_the_unit_under_its_filter(self):
        self.assertIn("SystemCallErrorNumber=EPERM", UNIT)
        self.assertEqual(self.serve(allowed_calls())["priority"], "refused")

    def test_says_in_one_line_that_a_package_is_missing(self):
        package = self.root / "usr/lib/python3/dist-packages/argon2"
        package.rename(self.root / "argon2")
        self.addCleanup(self.root.joinpath("argon2").rename, package)
        run = self.enter("", "/opt/jwks-server/jwks-server.pyz")
        self.assertEqual((run.returncode, run.stderr.count("\n")), (2, 1), run.stderr)
        self.assertIn("argon2", run.stderr)


if __name__ == "__main__":
    unittest.main()
