"""openid-client, oauth4webapi and simple-oauth2 discover the server and get tokens from it.

NODE_CLIENTS may name a folder whose node_modules has the three; else npm installs them for the run.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import unittest
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from tests.live.issuing import (
    ELSEWHERE,
    NAME,
    AsThePageSays,
    Issuing,
    ask_program,
    needs,
)
from tests.support import free_port

PACKAGES = ("jose@6", "openid-client@6", "oauth4webapi@3", "simple-oauth2@5")
INSTALL = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--silent", *PACKAGES]
IMPORTS = """
import { createRemoteJWKSet, jwtVerify } from "jose";
import { ClientSecretBasic, clientCredentialsGrant, discovery } from "openid-client";
const password = process.env.PASSWORD;
"""
PRINT = "process.stdout.write(JSON.stringify(payload));"
SCRIPT = Path(__file__).with_name("oauth_clients.mjs")


@cache
def packages() -> Path:
    """A node_modules with the packages; a skip where npm installs nothing."""
    if "NODE_CLIENTS" in os.environ:
        return Path(os.environ["NODE_CLIENTS"], "node_modules")
    folder = tempfile.mkdtemp(prefix="jwks-npm-")
    unittest.addModuleCleanup(shutil.rmtree, folder, ignore_errors=True)
    run = subprocess.run(
        INSTALL, cwd=folder, capture_output=True, text=True, timeout=300, check=False
    )
    if run.returncode:
        raise unittest.SkipTest(f"npm installs nothing here: {run.stderr[-300:]}")
    return Path(folder, "node_modules")


@needs("node", "npm")
class NodeClients(Issuing):
    found: ClassVar[dict[str, Any]]  # by what was asked for

    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        folder = Path(tempfile.mkdtemp(prefix="jwks-node-"))
        cls.addClassCleanup(shutil.rmtree, folder, ignore_errors=True)
        shutil.copy(SCRIPT, folder)
        (folder / "node_modules").symlink_to(packages())
        cls.found = ask_program(
            ["node", SCRIPT.name], folder,
            ISSUER=cls.issuer_url, NAME=NAME, PASSWORD=cls.password,
        )  # fmt: skip

    def test_get_a_token_with_both_grants_in_every_way(self):
        others = {"narrowed", "refused", "accessToken"}
        whole = {k: v for k, v in self.found.items() if not others & {*k.split()}}
        self.assertEqual(len(whole), 6 + 3 + 8 + 1)
        for name, answer in whole.items():
            with self.subTest(name):
                self.assertIssued(answer)

    def test_verify_a_token_for_its_audience_alone(self):
        self.assertEqual(self.found["jose"]["payload"]["sub"], NAME)
        self.assertIn("aud", self.found["jose refused"]["failed"])

    def test_take_it_for_an_access_token_of_rfc_9068_if_it_is_one(self):
        wanted = "token_type" in self.settings
        for name in ("jose", "oauth4webapi"):
            claims = self.found[f"{name} accessToken"]
            self.assertEqual("failed" not in claims, wanted, claims)
            self.assertEqual(claims.get("client_id"), NAME if wanted else None)

    def test_narrow_scope_and_audience(self):
        for algorithm in ("oidc", "oauth2"):
            answer = self.found[f"openid-client {algorithm} narrowed"]
            self.assertIssued(answer, "read", "https://api.example")

    def test_hear_the_word_of_a_refusal(self):
        for algorithm in ("oidc", "oauth2"):
            for way, word in (("basic", "basic"), ("post", "invalid_client")):
                answer = self.found[f"openid-client {algorithm} refused {way}"]
                self.assertEqual(answer, {"failed": word})


class OfAnIssuerWithAPath(NodeClients):
    @classmethod
    def setUpClass(cls) -> None:
        port = free_port()
        cls.settings = {**cls.settings, "port": port, "issuer": f"http://127.0.0.1:{port}/tenant"}
        super().setUpClass()


@needs("node", "npm")
class ThePage(AsThePageSays):
    heading, secure = "Node", True

    def test_gets_a_token_and_verifies_it(self):
        (self.folder / "node_modules").symlink_to(packages())
        page = self.page.there("js", **{ELSEWHERE: self.issuer_url})
        (self.folder / "page.mjs").write_text(f"{IMPORTS}\n{page}\n{PRINT}")
        payload = ask_program(
            ["node", "page.mjs"], self.folder,
            NODE_EXTRA_CA_CERTS=self.certificate, PASSWORD=self.password,
        )  # fmt: skip
        self.assertEqual((payload["sub"], payload["scope"]), (self.name, "read"))


class OfAccessTokens(NodeClients):
    settings: ClassVar[dict[str, Any]] = {**Issuing.settings, "token_type": "at+jwt"}


if __name__ == "__main__":
    unittest.main()
