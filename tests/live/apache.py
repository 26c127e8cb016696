"""Apache's mod_auth_openidc as a resource server: a token opens it by its scope."""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import subprocess
import tempfile
import unittest
from pathlib import Path

from tests.live.issuing import Issuing, free_port, listens, needs, settings_on_the_page
from tests.live.rabbitmq import end
from tests.test_httpd_tls import make_certificate

MODULES = "/usr/lib/apache2/modules"
START_SECONDS = 30
CONFIG = """
ServerRoot {folder}
ServerName localhost
Listen 127.0.0.1:{port}
PidFile {folder}/pid
ErrorLog {folder}/error.log
DocumentRoot {folder}/pages
User www-data
Group www-data
LoadModule mpm_event_module {modules}/mod_mpm_event.so
LoadModule authn_core_module {modules}/mod_authn_core.so
LoadModule authz_core_module {modules}/mod_authz_core.so
LoadModule authz_user_module {modules}/mod_authz_user.so
LoadModule auth_openidc_module {modules}/mod_auth_openidc.so
OIDCCryptoPassphrase nothing-is-stored
OIDCOAuthVerifyJwksUri {issuer}/.well-known/jwks.json
OIDCOAuthSSLValidateServer Off
OIDCOAuthRemoteUserClaim sub
<Location />
    AuthType oauth20
    Require claim "scope~(^| )read( |$)"
</Location>
"""


@needs("apache2", f"{MODULES}/mod_auth_openidc.so")
class Apache(Issuing):
    folder: Path
    port: int

    @classmethod
    def setUpClass(cls) -> None:
        cls.folder = Path(tempfile.mkdtemp(prefix="jwks-apache-"))
        cls.addClassCleanup(shutil.rmtree, cls.folder, ignore_errors=True)
        cls.folder.chmod(0o755)
        certificate, key = make_certificate(str(cls.folder), "localhost")
        cls.settings = {"tls_cert": certificate, "tls_key": key}
        super().setUpClass()
        cls.port = free_port()
        (cls.folder / "pages").mkdir()
        (cls.folder / "pages/page.txt").write_text("the page")
        config = cls.folder / "apache.conf"
        config.write_text(
            CONFIG.format(folder=cls.folder, port=cls.port, modules=MODULES, issuer=cls.issuer_url)
        )
        apache = subprocess.Popen(
            ["apache2", "-f", str(config), "-DFOREGROUND"],
            env={**os.environ, "APACHE_RUN_DIR": str(cls.folder)},
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip
        cls.addClassCleanup(apache.stderr.close)
        cls.addClassCleanup(end, apache)
        if not listens(cls.port, apache, START_SECONDS):
            raise AssertionError(f"Apache did not start: {cls.errors()}")

    @classmethod
    def errors(cls) -> str:
        log = cls.folder / "error.log"
        return log.read_text("utf-8")[-2000:] if log.exists() else ""

    def status(self, token: str | None) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        with contextlib.closing(connection):
            headers = {} if token is None else {"Authorization": f"Bearer {token}"}
            connection.request("GET", "/page.txt", headers=headers)
            return connection.getresponse().status

    def test_runs_with_what_the_page_says(self):
        config = (self.folder / "apache.conf").read_text("utf-8")
        for line in settings_on_the_page("Apache, Envoy, nginx"):
            self.assertIn(line.split("https:")[0], config)

    def test_opens_to_the_scope_and_to_nothing_else(self):
        good = self.issuer.token("alice", scope="read write")
        self.assertEqual(self.status(good), 200, self.errors())
        for token in (
            None,
            good[:-8] + "AAAAAAAA",
            self.issuer.token("alice"),
            self.issuer.token("alice", scope="write reader"),
            self.issuer.token("alice", scope="read", exp=1),
        ):
            self.assertEqual(self.status(token), 401)


if __name__ == "__main__":
    unittest.main()
