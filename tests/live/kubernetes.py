"""The authenticator of the API server of Kubernetes, from Debian's source of it, with our tokens.

KUBERNETES_SOURCE may name a folder with that source; else apt-get downloads it for the run. The
authenticator is compiled alone, which takes seconds; the whole API server would take many minutes.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tarfile
import tempfile
import unittest
from pathlib import Path
from typing import ClassVar

from tests.live.issuing import ELSEWHERE, AsThePageSays, ask_program, needs

PARTS = ("vendor", "staging")  # of the source: what the authenticator is made of
SECONDS = 300  # for a download, or for the compiler
PROGRAM = """
package main

import (
	"context"
	"encoding/json"
	"flag"
	"os"
	"strings"
	"time"

	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/plugin/pkg/authenticator/token/oidc"
)

type verdict struct {
	Accepted bool
	Name     string
	Groups   []string
	Reason   string
}

// It asks the issuer ten seconds after its start.
func ask(by authenticator.Token, token string) (said verdict) {
	for start := time.Now(); time.Since(start) < time.Minute; time.Sleep(time.Second / 10) {
		found, accepted, err := by.AuthenticateToken(context.Background(), token)
		said.Accepted = accepted
		if err != nil {
			said.Reason = err.Error()
		} else if accepted {
			said.Name, said.Groups = found.User.GetName(), found.User.GetGroups()
		}
		if !strings.Contains(said.Reason, "not initialized") {
			break
		}
		said.Reason = ""
	}
	return
}

func main() {
	options := oidc.Options{CAFile: os.Getenv("CERTIFICATE")}
	flag.StringVar(&options.IssuerURL, "oidc-issuer-url", "", "")
	flag.StringVar(&options.ClientID, "oidc-client-id", "", "")
	flag.StringVar(&options.UsernameClaim, "oidc-username-claim", "", "")
	flag.StringVar(&options.GroupsClaim, "oidc-groups-claim", "", "")
	flag.Parse()
	by, err := oidc.New(options)
	if err != nil {
		panic(err)
	}
	tokens, found := map[string]string{}, map[string]verdict{}
	json.Unmarshal([]byte(os.Getenv("TOKENS")), &tokens)
	for name, token := range tokens {
		found[name] = ask(by, token)
	}
	json.NewEncoder(os.Stdout).Encode(found)
}
"""


def run(*command: str, folder: Path, **environ: str) -> str:
    """What a command prints; a skip with its last words if it fails."""
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, **environ},
        capture_output=True, text=True, timeout=SECONDS, check=False,
    )  # fmt: skip
    if done.returncode:
        raise unittest.SkipTest(f"{command[0]} fails here: {done.stderr[-300:]}")
    return done.stdout


def source(folder: Path) -> Path:
    """The folder with the source."""
    if "KUBERNETES_SOURCE" in os.environ:
        return Path(os.environ["KUBERNETES_SOURCE"])
    wanted = ("--format", "deb-src $(SITE) $(RELEASE) $(COMPONENT)")
    lines = run("apt-get", "indextargets", *wanted, "Created-By: Packages", "Origin: Debian",
                folder=folder)  # fmt: skip
    (folder / "sources.list").write_text("\n".join(sorted({*lines.splitlines()})) + "\n")
    (folder / "lists/partial").mkdir(parents=True)
    places = {
        "Etc::sourcelist": "sources.list",
        "Etc::sourceparts": "none",
        "State::lists": "lists",
    }
    options = [f"--option=Dir::{name}={folder / path}" for name, path in places.items()]
    run("apt-get", *options, "--quiet=2", "update", folder=folder)
    run("apt-get", *options, "--quiet=2", "--download-only", "source", "kubernetes", folder=folder)
    archive = next(folder.glob("*.orig.tar.gz"))
    with tarfile.open(archive) as files:
        top = next(iter(files)).name.split("/")[0]
    run("tar", "-xf", archive.name, *(f"{top}/{part}" for part in PARTS), folder=folder)
    return folder / top


@needs("go", "apt-get", "tar")
class Kubernetes(AsThePageSays):
    heading, secure = "Kubernetes", True
    program: ClassVar[Path]

    @classmethod
    def setUpClass(cls) -> None:
        folder = Path(tempfile.mkdtemp(prefix="jwks-kubernetes-"))
        cls.addClassCleanup(shutil.rmtree, folder, ignore_errors=True)
        home = folder / "path/src/k8s.io/kubernetes"  # its vendored packages count below this
        home.mkdir(parents=True)
        unpacked = source(folder)
        for part in PARTS:
            (home / part).symlink_to(unpacked / part)
        (home / "ask").mkdir()
        (home / "ask/main.go").write_text(PROGRAM)
        cls.program = folder / "program"
        run(
            *("go", "build", "-o", str(cls.program), "k8s.io/kubernetes/ask"),
            folder=home, GO111MODULE="off", GOPATH=str(folder / "path"), GOFLAGS="",
            GOCACHE=str(folder / "cache"),
        )  # fmt: skip
        super().setUpClass()

    def test_knows_name_and_groups_and_refuses_every_flaw(self):
        flags = self.page.there(**{ELSEWHERE: self.issuer_url}).split()
        tokens = {"good": self.token(), "plain": self.token_without_claims(), **self.flawed()}
        found = ask_program(
            [str(self.program), *flags], self.folder,
            CERTIFICATE=self.certificate, TOKENS=json.dumps(tokens),
        )  # fmt: skip
        good, plain = found.pop("good"), found.pop("plain")
        self.assertEqual((good["Name"], good["Groups"]), (self.name, ["developers"]), good)
        self.assertEqual((plain["Name"], plain["Groups"]), ("other", None), plain)
        for name, verdict in found.items():
            with self.subTest(name):
                self.assertFalse(verdict["Accepted"], verdict)


if __name__ == "__main__":
    unittest.main()
